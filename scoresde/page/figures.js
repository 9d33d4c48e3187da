// The figures of all pages. Each draws itself from the state of its controls and returns the sentences below it. `say` has the
// spoken value of a slider, and `box` the place of a panel on which a pointer moves the sliders x and y. What a figure does with
// points in the plane or with other samples is in plane.js or frames.js: its height, and the method `show`.

let data, about; // the numbers of the page
const controls = new Map(); // by id: {input, initial, say}
const chosen = (id) => controls.get(id).input.value;
const value = (id) => +chosen(id);

const round = (v, digits = 2) => (Number.isFinite(v) ? `${+v.toPrecision(digits)}`.replace("-", "−") : "no number");
const fixed = (v, digits = 2) => v.toFixed(digits).replace(/^-(?=[0.]+$)/, "").replace("-", "−"); // without -0.00
const counted = (n, thing) => `${n} ${thing}${n === 1 ? "" : "s"}`;
const rootMean = (values) => Math.sqrt(values.reduce((sum, v) => sum + v * v, 0) / values.length);
// The standard error of the root mean square of independent values.
const scatter = (values) => {
  const size = rootMean(values);
  return rootMean(values.map((v) => v * v - size * size)) / (2 * size * Math.sqrt(values.length));
};

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
const bare = ({ name }) => name.replace("this model: ", "");
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

// Two places side by side, or one above the other where it is narrow. With `square`, the first one is a square.
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
  now: () => along(data.paths[value("forward-path")], value("forward-time") / 200),
  say: { time: () => `t = ${fixed(figures.forward.now().t)}, ${spoken(figures.forward.now().logSnr)}` },
  draw(g, w, h) {
    const now = this.now(), { t, logSnr, left } = now, path = data.paths[value("forward-path")];
    const whose = bare(path) === path.name ? "" : ", which is this model's,";
    const told = `At t = ${fixed(t)} on the ${bare(path)} path${whose} ${percent(1 - left)} of the variance is noise `
      + `(log-SNR ${fixed(logSnr, 1)}).`;
    return [told, ...this.show(g, w, h, now)];
  },
};

figures.reverse = {
  say: { time: (v) => (data.reverse[view()].note ? "no paths" : spoken(figures.reverse.level(v / about.between))) },
  // The log-SNR at a place between two recorded levels, such as 2.4.
  level(place) {
    const levels = data.reverse[view()].log_snr, i = Math.min(Math.floor(place), levels.length - 2), f = place - i;
    return logSnrOf(ratio(levels[i]) * (1 - f) + ratio(levels[i + 1]) * f);
  },
  draw(g, w, h) {
    const found = data.reverse[view()], place = value("reverse-time") / about.between;
    if (found.note) return missing(g, [12, 16, w - 24], `There are no paths: ${found.note}`);
    const told = this.show(g, w, h, found, place, place === found.log_snr.length - 1);
    return [`At ${spoken(this.level(place))}: ${told[0]}`, ...told.slice(1), viewName(), lost(found)];
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
      new Panel(g, [x, y - 24, cell, 20]).clipped(() => label(g, bare(path), x, y - 10));
      this.show(g, box, p);
      label(g, percent(p.left), x, h - 8);
      return `${percent(p.left)} on the ${bare(path)} path`;
    });
    return [`After ${round(100 * part, 3)} % of the time, the share of data in the variance is ${told.join(", ")}.`];
  },
};

figures.solvers = {
  say: { budget: (v) => counted(data.solvers.budgets[v], "evaluation") },
  draw(g, w, h) {
    const { note, rows, budgets, ends, chart: curves } = data.solvers;
    const name = chosen("solvers-name"), asked = budgets[value("solvers-budget")];
    if (note) return missing(g, [12, 16, w - 24], `The solvers could not be compared: ${note}`);
    const at = rows.findIndex((row) => row.solver === name && row.asked === asked), title = `${name}, ${counted(asked, "evaluation")}`;
    const [one, two] = pair(w, h, about.kind === "plane");
    this.show(g, one, title, ends, rows[at].note ? null : at);
    if (rows[at].note) missing(g, one, rows[at].note);
    if (curves) {
      const panel = chart(g, [two[0] + 12, two[1], two[2] - 12, two[3]], curves, name), { place } = rows[at];
      if (place) circle(g, panel.X(place[0]), panel.Y(place[1]), 8, 2);
    }
    return [rows[at].told];
  },
};
