// The figures of all pages. Each draws itself from the state of its controls and returns the sentences below it. `say` has the
// spoken value of a slider, and `box` the place of a panel on which a pointer moves the sliders x and y.

let data, about; // the numbers of the page
const controls = new Map(); // by id: {input, initial, say}
const chosen = (id) => controls.get(id).input.value;
const value = (id) => +chosen(id);

const round = (v, digits = 2) => (Number.isFinite(v) ? `${+v.toPrecision(digits)}`.replace("-", "−") : "no number");
const fixed = (v, digits = 2) => v.toFixed(digits).replace("-", "−");
const counted = (n, thing) => `${n} ${thing}${n === 1 ? "" : "s"}`;
const rootMean = (values) => Math.sqrt(values.reduce((sum, v) => sum + v * v, 0) / values.length);

function percent(share) {
  if (share > 0 && share < 1e-4) return "less than 0.01 %";
  return share < 0.005 ? `${round(100 * share, 1)} %` : `${Math.round(100 * share)} %`;
}

const spoken = (logSnr) => `log-SNR ${fixed(logSnr, 1)}, ${percent(sigmoid(-logSnr))} noise`;

// The log-SNR at a share r, within those of the model.
const within = (r) => clamp(logSnrOf(clamp(r, 1e-9, 1 - 1e-9)), about.low, about.high);
const view = () => (controls.has("class") ? value("class") : 0);
const viewName = () => about.views.length > 1 && `Class: ${about.views[view()].name}.`;
const lost = (found) => found.failed && `${found.failed} paths left out, because they met numbers that are not finite.`;

const toData = (v, d) => v * about.scale[d] + about.shift[d];
const toModel = (v, d) => (v - about.shift[d]) / about.scale[d];
const coordinate = (v, d) => fixed(toData(v, d), clamp(2 - Math.floor(Math.log10(about.scale[d] * about.half)), 0, 6));
// The place of a path at the share `part` of its time: its time, angle, size, log-SNR, and the share of data in the variance.
function along({ curves: { shape: [, n], values: v }, low, high }, part) {
  const at = part * (n - 1), i = Math.min(Math.floor(at), n - 2), f = at - i;
  const [turn, size] = [0, n].map((row) => v[row + i] * (1 - f) + v[row + i + 1] * f), c = Math.cos(turn), s = Math.sin(turn);
  return { t: low + part * (high - low), c, s, size, logSnr: 2 * Math.log(Math.max(c, 1e-9) / s), left: c * c };
}

const MARGIN = { left: 34, top: 24, right: 10, bottom: 22 };
const narrow = (w) => w < 560;
const squareHeight = (w) => w - MARGIN.left - MARGIN.right + MARGIN.top + MARGIN.bottom;
const wideHeight = (w) => Math.round((narrow(w) ? 1.75 : 0.44) * w);
const squareBox = (w) => [MARGIN.left, MARGIN.top, w - MARGIN.left - MARGIN.right, w - MARGIN.left - MARGIN.right];

// Two places side by side, or one above the other where it is narrow. With `first`, the first one is a square.
function pair(w, h, square = false) {
  const { left, top, right, bottom } = MARGIN, wide = w - left - right, high = h - top - bottom;
  if (narrow(w)) {
    const half = h / 2 - top - bottom, side = Math.min(wide, half);
    return [[left, top, square ? side : wide, square ? side : half], [left, h / 2 + top, wide, half]];
  }
  const both = wide - left - right, first = square ? Math.min(both / 2, high) : both / 2;
  return [[left, top, first, square ? first : high], [2 * left + right + first, top, both - first, high]];
}

const figures = {};

figures.forward = {
  height: (w) => (["plane", "points"].includes(about.kind) ? squareHeight(w) : Math.round(0.8 * w)),
  now: () => along(data.paths[value("forward-path")], value("forward-time") / 200),
  say: { time: () => `t = ${fixed(figures.forward.now().t)}, ${spoken(figures.forward.now().logSnr)}` },
  draw(g, w, h) {
    const { t, c, s, size, logSnr, left } = this.now();
    const told = `At t = ${fixed(t)} on the path ${data.paths[value("forward-path")].name}, ${percent(1 - left)} of the variance is noise `
      + `(log-SNR ${fixed(logSnr, 1)}).`;
    if (about.kind !== "plane") {
      const [x, y, wide] = squareBox(w);
      samples(g, data.forward.frames, nearest(data.forward.log_snr, logSnr), [x, y, wide, h - MARGIN.top - MARGIN.bottom]);
      return [told, about.shown];
    }
    const panel = plane(g, squareBox(w), "", size), radius = s * panel.w / (2 * about.half), corner = Math.max(radius, 8) + 8;
    panel.clipped(() => {
      dots(panel, ...noisy(data.forward[value("forward-set")], c, s));
      circle(g, panel.x + panel.w - corner, panel.y + corner, Math.max(radius, 0.5), 1.5);
    });
    return [
      told,
      c > 0.02 ? `Details smaller than ${round(s / c)} model units cannot be seen any more; the data are about 2 to 4 model units wide.`
        : "Nothing can be seen of the data any more.",
      Math.abs(size - 1) > 0.01 && `The state itself is ${round(size, 3)} times as large as it would be on a path that keeps the `
        + "variance; the axes show its true size.",
    ];
  },
};

figures.reverse = {
  height: (w) => (about.kind === "plane" ? squareHeight(w) : Math.round((about.kind === "points" ? 0.62 : 1.1) * w)),
  say: { time: (v) => (data.reverse[view()].note ? "no paths" : spoken(figures.reverse.level(v / about.between))) },
  // The log-SNR at a place between two recorded levels, such as 2.4.
  level(place) {
    const levels = data.reverse[view()].log_snr, i = Math.min(Math.floor(place), levels.length - 2), f = place - i;
    return logSnrOf(ratio(levels[i]) * (1 - f) + ratio(levels[i + 1]) * f);
  },
  // The recorded states at such a place.
  at({ shape: [, n, frames], values: v }, place) {
    const i = Math.min(Math.floor(place), frames - 2), f = place - i;
    return [0, n].map((first) => Float64Array.from({ length: n }, (_, k) => {
      const at = (first + k) * frames + i;
      return v[at] * (1 - f) + v[at + 1] * f;
    }));
  },
  draw(g, w, h) {
    const found = data.reverse[view()], place = value("reverse-time") / about.between;
    if (found.note) return missing(g, w, `There are no paths: ${found.note}`);
    const arrived = place === found.log_snr.length - 1, told = `At ${spoken(this.level(place))}:`;
    if (about.kind !== "plane") {
      const [x, y, wide] = squareBox(w), high = (h - 2 * y - 8) / 2, side = (wide - 20) / 2, beside = about.kind === "points";
      samples(g, found.states, place, beside ? [x, y, side, side] : [x, y, wide, high], "the state");
      const second = beside ? [x + side + 34, y, side - 14, side - 14] : [x, 2 * y + high, wide, high];
      samples(g, found.estimates, place, second, "what the model sees in it");
      const way = arrived ? "that have arrived" : "on their way";
      return [`${told} ${found.states.shape[1]} samples ${way}.`, about.shown, viewName(), lost(found)];
    }
    const [xs, ys] = this.at(found.states, place), ends = this.at(found.states, found.log_snr.length - 1);
    const seen = tableX0(data.table[view()], xs, ys, this.level(place)), estimate = chosen("reverse-shown") === "estimate";
    const group = ends[0].map((x, i) => Math.min(5, Math.floor((Math.atan2(ends[1][i], x) / (2 * Math.PI) + 1) % 1 * 6)));
    const panel = plane(g, squareBox(w), estimate ? "what the model sees" : "the state");
    panel.clipped(() => {
      if (!estimate) stroke(g, theme.soft, 0.6, [], () => this.trails(panel, found.states, place, xs, ys));
      dots(panel, ...(estimate ? seen : [xs, ys]), group);
    });
    const gap = rootMean([...xs].map((_, k) => Math.hypot(seen[0][k] - ends[0][k], seen[1][k] - ends[1][k])).filter(Number.isFinite));
    return [
      `${told} ${xs.length} states ${arrived ? "at the end of their way" : "on their way"} to samples. A single step from here would end `
      + `${round(gap)} model units from the end of the path (root mean square), so one step ${gap < 0.1 ? "suffices" : "does not suffice"} `
      + "from here.", viewName(), lost(found),
    ];
  },
  // Where the first states came from.
  trails(panel, { shape: [, n, frames], values: v }, place, xs, ys) {
    for (let k = 0; k < Math.min(20, n); k++) {
      const came = Array.from({ length: Math.floor(place) + 1 }, (_, i) => [v[k * frames + i], v[(n + k) * frames + i]]);
      through(panel.g, [...came, [xs[k], ys[k]]].map(([x, y]) => [panel.X(x), panel.Y(y)]));
    }
  },
};

figures.schedules = {
  height: (w) => Math.round((narrow(w) ? 1.35 : 0.5) * w),
  say: { time: (v) => `${v / 2} % of the time` },
  draw(g, w, h) {
    const part = value("schedules-time") / 200, gap = 8, left = MARGIN.left + gap, wide = w - left - MARGIN.right;
    const cell = Math.min((wide + gap) / data.paths.length - gap, 0.42 * h), y = h - cell - 24;
    const panel = chart(g, [left, MARGIN.top, wide, h - cell - 98], data.schedules);
    stroke(g, theme.soft, 1, [], () => through(g, [[panel.X(part), panel.y], [panel.X(part), panel.y + panel.h]]));
    const told = data.paths.map((path, k) => {
      const p = along(path, part), x = left + k * (cell + gap), box = [x, y, cell, cell];
      stroke(g, HUES[k], 2, DASHES[k], () => through(g, [[x, y - 26], [x + Math.min(cell, 28), y - 26]]));
      new Panel(g, [x, y - 24, cell, 20]).clipped(() => label(g, path.name.replace("this model: ", ""), x, y - 10));
      if (about.kind === "plane") this.points(g, box, p);
      else {
        const { log_snr, frames } = data.forward;
        samples(g, frames, nearest(log_snr, p.logSnr), box, "", about.kind === "points" ? frames.shape[1] : 1);
      }
      label(g, percent(p.left), x, h - 8);
      return `${path.name} keeps ${percent(p.left)}`;
    });
    return [`After ${round(100 * part, 3)} % of the time, ${told.join(", ")} of the variance as data.`];
  },
  points(g, box, { c, s }) {
    const panel = new Panel(g, box, [-about.half, about.half], [-about.half, about.half]);
    panel.axes([], []);
    panel.clipped(() => dots(panel, ...noisy(data.forward[0], c, s, 2), 1));
  },
};

figures.solvers = {
  height: (w) => (about.kind === "plane" ? wideHeight(w) : Math.round((narrow(w) ? 1.9 : 0.44) * w)),
  say: { budget: (v) => counted(data.solvers.budgets[v], "evaluation") },
  draw(g, w, h) {
    const { note, rows, budgets, ends, chart: curves } = data.solvers;
    const name = chosen("solvers-name"), asked = budgets[value("solvers-budget")];
    if (note) return missing(g, w, `The solvers could not be compared: ${note}`);
    const at = rows.findIndex((row) => row.solver === name && row.asked === asked), title = `${name}, ${counted(asked, "evaluation")}`;
    const [one, two] = pair(w, h, about.kind === "plane");
    if (about.kind === "plane") this.points(plane(g, one, title), ends, at);
    else samples(g, ends, at, one, title);
    if (curves) {
      const panel = chart(g, [two[0] + 12, two[1], two[2] - 12, two[3]], curves, name), { place } = rows[at];
      if (place) circle(g, panel.X(place[0]), panel.Y(place[1]), 8, 2);
    }
    return [rows[at].told];
  },
  points(panel, { shape: [, , n], values }, at) {
    const { shape: [, count], values: v } = ownSet().x0, mine = values.subarray(2 * n * at, 2 * n * (at + 1));
    panel.clipped(() => {
      specks(panel, v.subarray(0, count), v.subarray(count), null, theme.line);
      dots(panel, mine.subarray(0, n), mine.subarray(n));
    });
  },
};
