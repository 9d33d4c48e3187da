// The figures in the plane, with what they ask the model.

const sayNoise = (v) => spoken(within(v / 200));
const sayPercent = (v) => `${v} %`;
// The log-SNR at a share of the way from noise to data.
const between = (share) => within(ratio(about.low) + (ratio(about.high) - ratio(about.low)) * share);

const point = (z) => `(${coordinate(z[0], 0)}, ${coordinate(z[1], 1)})`;
const placed = (name) => ["x", "y"].map((part) => value(`${name}-${part}`) / 100 * about.half);
const sayPlace = (d) => (v) => `${about.names[d]} = ${coordinate(v / 100 * about.half, d)}`;

// A square panel of the plane, with the names of its axes and ticks in data units. `size` is the factor by which states were divided.
function plane(g, box, title = "", size = 1) {
  const { half, names } = about, panel = new Panel(g, box, [-half, half], [-half, half]);
  const few = (d) => ticks(-half, half, 6, (v) => toData(v * size, d), (v) => toModel(v, d) / size);
  panel.axes(few(0), few(1), [title, `${names[1]} over ${names[0]}`].filter(Boolean).join("; "));
  return panel;
}

const ownSet = () => data.forward.at(-1);

// The states c x_0 + s eps of every `stride`-th point of a set, and the groups of these points.
function noisy(set, c, s, stride = 1) {
  const n = set.x0.shape[1], count = Math.ceil(n / stride), states = room(count), { x0: { values: x0 }, eps: { values: eps } } = set;
  states.forEach((out, d) => {
    for (let i = 0, at = d * n; i < count; i++, at += stride) out[i] = c * x0[at] + s * eps[at];
  });
  const groups = set.groups ||= {}, group = groups[stride] ||= states[0].map((_, i) => Math.round(255 * set.colour.values[i * stride]));
  return [...states, group];
}

function specks(panel, [xs, ys], colour) {
  panel.g.fillStyle = colour;
  for (let i = 0; i < xs.length; i++) panel.g.fillRect(panel.X(xs[i]) - 1, panel.Y(ys[i]) - 1, 2.2, 2.2);
}

// The middles of n cells across the plane.
const middles = (n) => Float64Array.from({ length: n }, (_, i) => ((2 * i + 1) / n - 1) * about.half);

const hill = { at: null }; // the last log-SNR, the density there, and its height in the middle

// The density of noisy data, or noisy data themselves where it is unknown.
function behind(panel, logSnr) {
  if (!data.mixture) return specks(panel, noisy(ownSet(), ...angle(logSnr)), `rgba(${theme.shade}, .35)`);
  const n = 48, places = middles(n);
  if (hill.at !== logSnr) {
    const found = mixtureDensity(data.mixture, places, places, logSnr), most = Math.max(...found);
    const values = found.map((p) => Math.sqrt(p / most)), middle = found[n * n / 2 + n / 2] / most;
    Object.assign(hill, { at: logSnr, values, middle });
  }
  shades(panel.g, n, hill.values, 190, panel.box);
}

// What the model says at one point: the mixture, the network (at most eight times in a frame), or else the table.
function live(z, logSnr) {
  if (about.exact) return mixtureX0(data.mixture, z, logSnr);
  if (data.network) return networkX0(data.network, about, z, logSnr, about.views[view()].label);
  return tableX0(data.table[view()], Float64Array.of(z[0]), Float64Array.of(z[1]), logSnr).map((found) => found[0]);
}

const difference = (a, b) => [a[0] - b[0], a[1] - b[1]];

function spot(g, x, y) {
  g.fillStyle = HUES[1];
  g.beginPath();
  g.arc(x, y, 5, 0, 7);
  g.fill();
}

// Arrows at (xs, ys) along (dxs, dys) in pixels, as one path for the shafts, which end inside the heads, and one for the heads.
function arrows(g, xs, ys, dxs, dys, colour, width, head) {
  stroke(g, colour, width, [], () => {
    for (let i = 0; i < xs.length; i++) {
      const part = Math.max(0.7, 1 - head / 2 / Math.hypot(dxs[i], dys[i]));
      g.moveTo(xs[i], ys[i]);
      g.lineTo(xs[i] + part * dxs[i], ys[i] + part * dys[i]);
    }
  });
  g.fillStyle = colour;
  g.beginPath();
  for (let i = 0; i < xs.length; i++) {
    const length = Math.hypot(dxs[i], dys[i]), x = xs[i] + dxs[i], y = ys[i] + dys[i];
    if (!(length > 0.5)) continue;
    const top = Math.min(head, length * 0.6) / length, a = dxs[i] * top, b = dys[i] * top;
    g.moveTo(x, y);
    g.lineTo(x - a - 0.55 * b, y - b + 0.55 * a);
    g.lineTo(x - a + 0.55 * b, y - b - 0.55 * a);
  }
  g.fill();
}

// n x n values from 0 to 1 as shades, row by row from the bottom. A hole is orange.
function shades(g, n, values, strength, box) {
  const [red, green, blue] = theme.shade.split(",").map(Number), hole = colour(213, 94, 0, 120);
  picture(g, n, n, (pixels) => {
    for (let i = 0; i < n * n; i++) {
      const v = values[(n - 1 - Math.floor(i / n)) * n + i % n];
      pixels[i] = Number.isFinite(v) ? colour(red, green, blue, strength * v) : hole;
    }
  }, box, true);
}

Object.assign(figures.forward, {
  height: squareHeight,
  show(g, w, h, { c, s, size }) {
    const panel = plane(g, squareBox(w), "", size), radius = s * panel.w / (2 * about.half), corner = Math.max(radius, 8) + 8;
    panel.clipped(() => {
      dots(panel, ...noisy(data.forward[value("forward-set")], c, s));
      circle(g, panel.x + panel.w - corner, panel.y + corner, Math.max(radius, 0.5), 1.5);
    });
    const set = data.forward[value("forward-set")];
    return [
      set !== ownSet() && `The points are a ${set.name}, which shows well what noise destroys; choose ${ownSet().name} under Points to see `
        + "the page's own data.",
      c > 0.02 ? `The data are α = ${round(c * size)} times as large as at first, and the circle has the radius σ = ${round(s * size)} in `
        + `model units. So a detail of the data is gone if it is smaller than σ/α = ${round(s / c)}; the data are about 2 to 4 wide.`
        : "Nothing can be seen of the data any more.",
      Math.abs(size - 1) > 0.01 && `The state itself is ${round(size, 3)} times as large as it would be on a path that keeps the `
        + "variance; the axes show its true size.",
    ];
  },
});

Object.assign(figures.reverse, {
  height: squareHeight,
  // The recorded states at such a place.
  at({ shape: [, n, frames], values: v }, place) {
    const i = Math.min(Math.floor(place), frames - 2), f = place - i;
    return [0, n].map((first) => Float64Array.from({ length: n }, (_, k) => {
      const at = (first + k) * frames + i;
      return v[at] * (1 - f) + v[at + 1] * f;
    }));
  },
  show(g, w, h, found, place, arrived) {
    const [xs, ys] = this.at(found.states, place), ends = this.at(found.states, found.log_snr.length - 1);
    const seen = tableX0(data.table[view()], xs, ys, this.level(place)), estimate = chosen("reverse-shown") === "estimate";
    const group = ends[0].map((x, i) => Math.min(5, Math.floor((Math.atan2(ends[1][i], x) / (2 * Math.PI) + 1) % 1 * 6)));
    const panel = plane(g, squareBox(w), estimate ? "what the model sees" : "the state");
    panel.clipped(() => {
      if (!estimate) stroke(g, theme.soft, 0.6, [], () => this.trails(panel, found.states, place, xs, ys));
      dots(panel, ...(estimate ? seen : [xs, ys]), group);
    });
    const far = [...xs].map((_, k) => Math.hypot(seen[0][k] - ends[0][k], seen[1][k] - ends[1][k])).filter(Number.isFinite);
    const gap = +rootMean(far).toPrecision(2);
    return [
      `${xs.length} states ${arrived ? "at the end of their way" : "on their way"} to samples. A single step from here would end `
      + `${round(gap)} model units from the end of the path (root mean square). One step suffices where this is less than 0.1: here it `
      + `${gap < 0.1 ? "does" : "does not"}.`,
    ];
  },
  // Where the first states came from.
  trails(panel, { shape: [, n, frames], values: v }, place, xs, ys) {
    for (let k = 0; k < Math.min(20, n); k++) {
      const came = Array.from({ length: Math.floor(place) + 1 }, (_, i) => [v[k * frames + i], v[(n + k) * frames + i]]);
      through(panel.g, [...came, [xs[k], ys[k]]].map(([x, y]) => [panel.X(x), panel.Y(y)]));
    }
  },
});

figures.schedules.show = (g, box, { c, s }) => {
  const panel = new Panel(g, box, [-about.half, about.half], [-about.half, about.half]);
  panel.axes([], []);
  panel.clipped(() => dots(panel, ...noisy(data.forward[0], c, s, 2), 1));
};

Object.assign(figures.solvers, {
  height: wideHeight,
  show(g, box, title, { shape: [, , n], values }, at) {
    const panel = plane(g, box, title);
    if (at === null) return;
    const { shape: [, count], values: v } = ownSet().x0, mine = values.subarray(2 * n * at, 2 * n * (at + 1));
    panel.clipped(() => {
      specks(panel, [v.subarray(0, count), v.subarray(count)], theme.line);
      dots(panel, mine.subarray(0, n), mine.subarray(n));
    });
  },
});

const WALK = 48; // steps of a walk

figures.compass = {
  height: squareHeight,
  box: squareBox,
  say: { noise: sayNoise, accuracy: sayPercent, x: sayPlace(0), y: sayPlace(1) },
  setUp() {
    document.getElementById("compass-walk").addEventListener("click", () => this.release());
  },
  release() {
    const draws = normals(7, 16 + 8 * WALK), start = angle(about.low)[1];
    const each = Array.from({ length: 8 }, (_, k) => ({ xs: [start * draws[2 * k]], ys: [start * draws[2 * k + 1]] }));
    this.walkers = { each, sides: draws.subarray(16), halves: 0, accuracy: value("compass-accuracy") / 100, told: "" };
    touch("compass");
  },
  // Every other walker takes a step, so that a frame takes four live points; true while they walk.
  move() {
    const walk = this.walkers, k = Math.floor(walk?.halves / 2);
    if (!(k < WALK)) return false;
    const from = between(k / WALK), [keep, see] = stepper(from, between((k + 1) / WALK), 0);
    for (let n = walk.halves % 2; n < 8; n += 2) {
      const { xs, ys } = walk.each[n], z = [xs.at(-1), ys.at(-1)];
      const [dx, dy] = turned(difference(live(z, from), z), walk.accuracy, walk.sides[8 * k + n] < 0 ? -1 : 1);
      xs.push(keep * z[0] + see * (z[0] + dx));
      ys.push(keep * z[1] + see * (z[1] + dy));
    }
    walk.halves++;
    if (walk.halves === 2 * WALK) walk.told = this.ended(walk);
    return true;
  },
  draw(g, w) {
    const walking = this.move(), logSnr = within(value("compass-noise") / 200), accuracy = value("compass-accuracy") / 100;
    const z = placed("compass"), key = [...z, logSnr, view()].join();
    if (this.key !== key && !walking) Object.assign(this, { key, seen: live(z, logSnr) });
    const seen = this.seen || z, mine = turned(difference(seen, z), accuracy, 1);
    const exact = data.mixture && !about.exact && difference(mixtureX0(data.mixture, z, logSnr), z);
    const panel = plane(g, squareBox(w)), X = panel.X(z[0]), Y = panel.Y(z[1]), scale = panel.w / (2 * about.half);
    const radius = angle(logSnr)[1] * scale;
    const arrow = ([dx, dy], ...style) => arrows(g, [X], [Y], [dx * scale], [-dy * scale], ...style);
    panel.clipped(() => {
      behind(panel, logSnr);
      if (this.walkers && !(walking && still())) this.trails(panel); // without motion, only the whole walk is shown
      if (exact) arrow(exact, HUES[2], 6, 14);
      arrow(mine, theme.ink, 2.2, 11);
      circle(g, X, Y, radius, 1, [3, 3]);
      spot(g, X, Y);
    });
    if (walking) touch("compass");
    if (!seen.every(Number.isFinite)) return [`At this state and ${spoken(logSnr)} the model returns no finite number.`];
    return [
      `At ${point(z)} and ${spoken(logSnr)} the model sees ${point(seen)}.`,
      radius > 7 ? "The dashed circle is the size of the noise." : "The noise is smaller than the dot.",
      Math.hypot(...mine) * scale < 7 && "The arrow is so short that the dot hides it: the model sees the data almost where the state is.",
      exact && "The wide green arrow leads to what an exact model sees; the cosine of your arrow to it is "
        + `${fixed(cosine(mine, exact), 3)}.`,
      about.exact && (accuracy === 1 ? "The model is exact, so your arrow leads to the true mean."
        : `Your arrow is turned away from the exact one; their cosine is ${fixed(accuracy)}.`),
      this.walkers?.told, viewName(),
    ];
  },
  trails(panel) {
    for (const { xs, ys } of this.walkers.each) {
      line(panel, xs, ys, theme.soft, 1);
      dots(panel, xs.slice(-1), ys.slice(-1), [1], 4);
    }
  },
  ended({ each, accuracy }) {
    const { shape: [, n], values: v } = ownSet().x0, rows = [...Array(n).keys()];
    const far = each.map(({ xs, ys }) => Math.min(...rows.map((i) => Math.hypot(v[i] - xs.at(-1), v[n + i] - ys.at(-1)))));
    return `The walkers, who were let go with an accuracy of ${percent(accuracy)} and began at ${spoken(about.low)}, ended `
      + `${round(far.reduce((a, b) => a + b) / 8)} model units from the nearest of ${n} data points on average.`;
  },
};

figures.field = {
  height: squareHeight,
  say: { noise: sayNoise },
  draw(g, w) {
    const logSnr = within(value("field-noise") / 200), [c, s] = angle(logSnr), n = 24, panel = plane(g, squareBox(w));
    const places = middles(n), [xs, ys] = room(n * n);
    for (let k = 0; k < n * n; k++) {
      xs[k] = places[k % n];
      ys[k] = places[Math.floor(k / n)];
    }
    const seen = tableX0(data.table[view()], xs, ys, logSnr); // the score is (c seen - z) / s^2, and s^2 cancels below
    const dx = seen[0].map((x, k) => c * x - xs[k]), dy = seen[1].map((y, k) => c * y - ys[k]);
    const sizes = dx.map((x, k) => Math.hypot(x, dy[k])), longest = Math.max(...sizes.filter(Number.isFinite));
    const X = xs.map((x) => panel.X(x)), Y = ys.map((y) => panel.Y(y)), holes = [];
    sizes.forEach((size, k) => {
      const scale = size && (size / longest) ** 0.25 * 1.05 * panel.w / n / size;
      if (!Number.isFinite(size)) holes.push(k);
      dx[k] *= scale;
      dy[k] *= -scale;
      X[k] -= dx[k] / 2;
      Y[k] -= dy[k] / 2;
    });
    panel.clipped(() => {
      behind(panel, logSnr);
      arrows(g, X, Y, dx, dy, theme.ink, 1.1, 4.5);
      stroke(g, HUES[1], 1.5, [], () => holes.forEach((k) => this.cross(g, panel.X(xs[k]), panel.Y(ys[k]))));
    });
    return [
      `The score at ${spoken(logSnr)} over ${data.mixture ? "the exact density of the noisy data" : "noisy data"}.`,
      data.mixture ? this.seen()
        : `Here the noise is ${round(s / c / rootMean(ownSet().x0.values))} times as wide as the data (root mean square).`,
      holes.length && `At ${holes.length} of ${n * n} arrows (crosses) the model returns no finite number.`, viewName(),
    ];
  },
  // What the density behind the arrows looks like. Coarse cells suffice to count its hills, once for each noise.
  seen() {
    const n = 32, places = middles(n);
    if (this.at !== hill.at) this.count = hills(n, mixtureDensity(data.mixture, places, places, this.at = hill.at));
    if (this.count > 1) return `The density has ${this.count} hills, and near each of them the arrows lead to its top.`;
    return hill.middle > 0.9 ? "The density is one hill, and all arrows lead to its top."
      : "The density is one ridge around a hollow, and the arrows lead to the ridge from both sides.";
  },
  cross(g, x, y) {
    through(g, [[x - 4, y - 4], [x + 4, y + 4]]);
    through(g, [[x - 4, y + 4], [x + 4, y - 4]]);
  },
};

const MANY = 64, BINS = 24; // paths, and bars of a histogram

figures.flows = {
  height: wideHeight,
  say: { steps: (v) => counted(v, "step"), eta: (v) => `${v} % of the reverse SDE's`, shown: sayPercent },
  kept: {},
  setUp() {
    document.getElementById("flows-noise").addEventListener("click", () => set("flows-seed", value("flows-seed") % 999 + 1));
  },
  // The last answer for a name, made again only if what it depends on has changed.
  once(name, on, make) {
    const key = on.join();
    if (this.kept[name]?.key !== key) this.kept[name] = { key, made: make() };
    return this.kept[name].made;
  },
  // First coordinates of the paths, step by step, with a share of the noise of the reverse SDE.
  solve(steps, seed, eta) {
    const start = this.once("start", [seed], () => normals(seed, 2 * MANY));
    const each = this.once("noise", [seed], () => normals(seed + 5000, 100 * 2 * MANY));
    const size = angle(about.low)[1], z = [0, MANY].map((first) => start.subarray(first, first + MANY).map((v) => size * v));
    const kept = new Float64Array((steps + 1) * MANY), seen = room(MANY);
    kept.set(z[0]);
    for (let k = 0; k < steps; k++) {
      const [keep, see, stir] = stepper(between(k / steps), between((k + 1) / steps), eta);
      tableX0(data.table[view()], z[0], z[1], between(k / steps), seen);
      for (let d = 0; d < 2; d++) {
        for (let i = 0, at = (2 * k + d) * MANY; i < MANY; i++) z[d][i] = keep * z[d][i] + see * seen[d][i] + stir * each[at + i];
      }
      kept.set(z[0], (k + 1) * MANY);
    }
    return kept;
  },
  // Shares of numbers in the bins of the axis.
  histogram(values) {
    const found = new Float64Array(BINS);
    for (const v of values) found[Math.floor((v / about.half + 1) / 2 * BINS)] += 1 / values.length; // outside, nothing is counted
    return found;
  },
  draw(g, w, h) {
    const steps = value("flows-steps"), seed = value("flows-seed"), eta = value("flows-eta") / 100, shown = value("flows-shown") / 100;
    const both = [0, eta].map((e, k) => this.once(k, [steps, seed, e, view()], () => this.solve(steps, seed, e)));
    const ends = both.map((kept) => kept.subarray(steps * MANY)), real = ownSet().x0.values.subarray(0, ownSet().x0.shape[1]);
    const truth = this.once("truth", [], () => this.histogram(real)), bars = ends.map(this.histogram);
    const most = Math.max(...truth, ...bars[0], ...bars[1]);
    const rs = Float64Array.from({ length: steps + 1 }, (_, k) => ratio(between(k / steps))), last = Math.max(1, Math.round(shown * steps));
    const stride = Math.ceil((steps + 1) / 80), at = [...rs.keys()].filter((k) => k <= last && (k % stride === 0 || k === last));
    pair(w, h).forEach(([x, y, wide, high], k) => {
      const panel = new Panel(g, [x, y, 0.8 * wide, high], [rs[0], rs[steps]], [-about.half, about.half]);
      const named = ticks(-about.half, about.half, 5, (v) => toData(v, 0), (v) => toModel(v, 0));
      const title = `${k ? `SDE, share of noise ${fixed(eta)}` : "ODE"}: ${about.names[0]}`;
      panel.axes([[rs[0], "noise"], [rs[steps], "data"]], named, title);
      panel.clipped(() => this.paths(panel, both[k], at, rs));
      this.bars(panel, truth, shown === 1 && bars[k], x + 0.83 * wide, 0.17 * wide / most);
    });
    const finite = (v) => v.filter(Number.isFinite), size = (v, digits = 3) => round(rootMean(finite(v)), digits);
    const measured = (v) => `${fixed(rootMean(finite(v)))} ± ${fixed(scatter(finite(v)))}`;
    const gone = 2 * MANY - finite(ends[0]).length - finite(ends[1]).length;
    return [
      `Sixty-four paths of ${counted(steps, "step")} from the same noise. Bars: where they end; dark lines: ${real.length} data points.`,
      `In model units, the root mean square of ${about.names[0]} at the end is ${measured(ends[0])} for the ODE, `
      + `${measured(ends[1])} for the SDE and ${this.once("size", [], () => fixed(rootMean(real)))} for the data. `
      + "So few paths scatter: ± is the standard error.",
      `From the same noise, the two end ${size(ends[0].map((v, i) => v - ends[1][i]), 2)} apart.`,
      steps < 11 && "With so few steps, neither end is that of the data.",
      gone && `${gone} of the ${2 * MANY} paths met numbers that are not finite and are left out.`, viewName(),
    ];
  },
  // Paths at the steps `at`, in the colour of the place where they end.
  paths(panel, kept, at, rs) {
    const { g } = panel, X = at.map((k) => panel.X(rs[k])), ends = kept.subarray(-MANY);
    const hues = ends.map((v) => clamp(Math.floor((v / about.half + 1) * 3), 0, 5));
    HUES.forEach((colour, hue) => stroke(g, colour, 1, [], () => {
      for (let i = 0; i < MANY; i++) {
        if (hues[i] !== hue) continue;
        g.moveTo(X[0], panel.Y(kept[i]));
        for (let k = 1; k < at.length; k++) g.lineTo(X[k], panel.Y(kept[at[k] * MANY + i]));
      }
    }));
  },
  bars(panel, truth, ends, x, scale) {
    const { g } = panel, high = panel.h / BINS, up = (bin) => panel.y + panel.h - (bin + 1) * high;
    g.fillStyle = HUES[5];
    if (ends) ends.forEach((v, bin) => g.fillRect(x, up(bin) + 0.5, v * scale, high - 1));
    stroke(g, theme.ink, 1.5, [], () => truth.forEach((v, bin) => through(g, [[x + v * scale, up(bin)], [x + v * scale, up(bin) + high]])));
  },
};

figures.density = {
  height: wideHeight,
  box: (w) => pair(w, wideHeight(w), true)[0],
  hover: true,
  say: { x: sayPlace(0), y: sayPlace(1) },
  // A number between the nodes of a map of the density.
  at({ shape: [n], values: v }, z) {
    const [[i, a], [j, b]] = z.map((v) => {
      const place = clamp((v / about.half + 1) / 2 * (n - 1), 0, n - 1), node = Math.min(Math.floor(place), n - 2);
      return [node, place - node];
    });
    const row = (k) => v[k * n + i] * (1 - a) + v[k * n + i + 1] * a;
    return row(j) * (1 - b) + row(j + 1) * b;
  },
  draw(g, w, h) {
    const { note, log_prob: map, truth, change, told } = data.density, [one, two] = pair(w, h, true), z = placed("density");
    const panel = plane(g, one, "log p, darker where it is larger"), [X, Y] = [panel.X(z[0]), panel.Y(z[1])];
    this.errors(g, two);
    if (note) return [`There is no density: ${note}`];
    const n = map.shape[0], cell = panel.w / (n - 1); // nodes are in the middle of pixels, so the picture is half a pixel wider
    const most = map.values.reduce((best, v) => (v > best ? v : best), -Infinity);
    map.shades ||= map.values.map((v) => Math.max(0, 1 + (v - most) / 12));
    panel.clipped(() => {
      shades(g, n, map.shades, 215, [panel.x - cell / 2, panel.y - cell / 2, panel.w + cell, panel.w + cell]);
      stroke(g, theme.ink, 1.5, [], () => {
        through(g, [[X, panel.y], [X, panel.y + panel.h]]);
        through(g, [[panel.x, Y], [panel.x + panel.w, Y]]);
      });
      spot(g, X, Y);
    });
    const p = this.at(map, z), known = truth ? this.at(truth, z) : NaN;
    if (!Number.isFinite(p)) return ["Here the model has no finite log p.", told];
    return [
      `At ${point(z)} log p = ${fixed(p)} nats. Solved to a tolerance ten times looser it changes by ${round(this.at(change, z), 1)}.`,
      Number.isFinite(known) && `The data have log p = ${fixed(known)}, so the error is ${fixed(p - known)}.`, told,
    ];
  },
  errors(g, [x, y, w, h]) {
    const { note, charts } = data.compass, half = h / 2 - 22;
    if (note) label(g, "no comparison of scores", x, y + 20, theme.soft);
    else charts.forEach((each, k) => chart(g, [x + 8, y + k * (half + 44), w - 8, half], each));
  },
};
