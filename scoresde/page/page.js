// The script of a page: what it draws, from the numbers in the page alone. No library, no network, no storage.
//
// The parts, in order: arrays, mathematics (the frame of frame.py, the exact mixture, the network, the table, a step of
// a solver), drawing, figures, and the page itself with its state and its loop. The first two run in Node as well, where
// they are tested against the package.
"use strict";

const page = (() => {

// ------------------------------------------------------------------------------------------------------------- arrays

// Half precision: a sign, 5 bits of exponent and 10 bits of fraction.
function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}

// The numbers of a packed array (data.py), as {shape, values}.
async function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed.text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  const raw = new Uint8Array(await new Response(stream).arrayBuffer());
  const width = { steps: 2, half: 2, single: 4, bytes: 1 }[packed.kind], count = raw.length / width;
  const values = new Float64Array(count), last = packed.shape[packed.shape.length - 1] || 1;
  const view = new DataView(new ArrayBuffer(4));
  for (let i = 0, sum = 0; i < count; i++) {
    if (packed.kind === "bytes") values[i] = raw[i] * packed.step;
    else if (packed.kind === "half") values[i] = half(raw[i] | (raw[i + count] << 8));
    else if (packed.kind === "single") {
      for (let k = 0; k < 4; k++) view.setUint8(k, raw[i + k * count]);
      values[i] = view.getFloat32(0, true);
    } else {
      if (i % last === 0) sum = 0;
      sum = ((sum + (raw[i] | (raw[i + count] << 8))) << 16) >> 16; // int16 differences wrap around
      values[i] = sum === -32768 ? NaN : sum * packed.step;
    }
  }
  return { shape: packed.shape, values };
}

// Unpack every packed array inside a value.
async function unpackAll(value) {
  if (Array.isArray(value)) return Promise.all(value.map(unpackAll));
  if (value === null || typeof value !== "object") return value;
  if (typeof value.text === "string" && Array.isArray(value.shape)) return unpack(value);
  const found = {};
  for (const [key, part] of Object.entries(value)) found[key] = await unpackAll(part);
  return found;
}

// -------------------------------------------------------------------------------------------------------- mathematics

const sigmoid = (x) => 1 / (1 + Math.exp(-x));

// z = c x_0 + s eps at a log-SNR.
const angle = (logSnr) => [Math.sqrt(sigmoid(logSnr)), Math.sqrt(sigmoid(-logSnr))];

// r = s/(c + s), in which sliders move, and back.
const ratio = (logSnr) => sigmoid(-logSnr / 2);
const logSnrOf = (r) => 2 * (Math.log1p(-r) - Math.log(r));

// The estimate of the data at z for an axis-parallel mixture of Gaussians (mixture.py).
function mixtureX0(mixture, z, logSnr) {
  const [c, s] = angle(logSnr), parts = [];
  let most = -Infinity;
  for (let k = 0; k < mixture.means.length; k++) {
    let log = Math.log(mixture.weights[k]);
    const guess = [0, 0];
    for (let d = 0; d < 2; d++) {
      const v = mixture.variances[k][d], total = c * c * v + s * s, off = z[d] - c * mixture.means[k][d];
      log -= (off * off / total + Math.log(total)) / 2;
      guess[d] = mixture.means[k][d] + c * v * off / total;
    }
    parts.push([log, guess]);
    most = Math.max(most, log);
  }
  let sum = 0, x = 0, y = 0;
  for (const [log, guess] of parts) {
    const share = Math.exp(log - most);
    sum += share; x += share * guess[0]; y += share * guess[1];
  }
  return [x / sum, y / sum];
}

// The density of z for the mixture, up to a factor that does not depend on z.
function mixtureDensity(mixture, z0, z1, logSnr) {
  const [c, s] = angle(logSnr);
  let sum = 0;
  for (let k = 0; k < mixture.means.length; k++) {
    const [m, v] = [mixture.means[k], mixture.variances[k]];
    const a = c * c * v[0] + s * s, b = c * c * v[1] + s * s, p = z0 - c * m[0], q = z1 - c * m[1];
    sum += mixture.weights[k] * Math.exp(-(p * p / a + q * q / b) / 2) / Math.sqrt(a * b);
  }
  return sum;
}

const silu = (x) => x * sigmoid(x);

// W x + b for a layer of a network; W has the shape (out, in).
function linear(weights, name, x) {
  const w = weights[`${name}.weight`], b = weights[`${name}.bias`].values, [rows, columns] = w.shape;
  const out = new Float64Array(rows), v = w.values, even = columns & ~3;
  for (let i = 0; i < rows; i++) {
    const at = i * columns;
    let p = b[i], q = 0, r = 0, t = 0, j = 0; // four sums, which do not wait for each other
    for (; j < even; j += 4) {
      p += v[at + j] * x[j]; q += v[at + j + 1] * x[j + 1]; r += v[at + j + 2] * x[j + 2]; t += v[at + j + 3] * x[j + 3];
    }
    for (; j < columns; j++) p += v[at + j] * x[j];
    out[i] = p + q + r + t;
  }
  return out;
}

function normalised(weights, name, x) {
  const g = weights[`${name}.weight`].values, b = weights[`${name}.bias`].values, n = x.length;
  let mean = 0, square = 0;
  for (const v of x) mean += v / n;
  for (const v of x) square += (v - mean) ** 2 / n;
  return x.map((v, i) => (v - mean) / Math.sqrt(square + 1e-5) * g[i] + b[i]);
}

// The value of a curve over the log-SNR, by the cubic through four points.
function curve(values, count, row, at) {
  const i = Math.min(Math.max(Math.floor(at), 1), count - 3), f = at - i, v = (k) => values[row * count + i + k];
  return v(-1) * -f * (f - 1) * (f - 2) / 6 + v(0) * (f + 1) * (f - 1) * (f - 2) / 2
    + v(1) * -(f + 1) * f * (f - 2) / 2 + v(2) * (f + 1) * f * (f - 1) / 6;
}

let lived = 0; // evaluations of the network

// What a network makes of the noise level and the class alone: its curves, and the scale and shift of each block. The last
// answer is kept, because several points often share a level.
function embedded(net, about, logSnr, label) {
  const kept = net.kept;
  if (kept && kept.logSnr === logSnr && kept.label === label) return kept;
  const w = net.weights, count = net.curves.shape[1], at = (logSnr - about.low) / (about.high - about.low) * (count - 1);
  const [told, kin, kz, kf] = [0, 1, 2, 3].map((row) => curve(net.curves.values, count, row, at));
  const angles = Array.from(net.frequencies.values, (f) => f * told);
  let features = Float64Array.from([...angles.map(Math.sin), ...angles.map(Math.cos)], (v) => Math.SQRT2 * v);
  if (net.classes && label !== null) {
    const rows = w["embedding.classes.weight"].values, n = features.length;
    features = features.map((v, i) => v + rows[label * n + i]);
  }
  const c = linear(w, "embedding.mlp.2", linear(w, "embedding.mlp.0", features).map(silu)).map(silu);
  const blocks = Array.from({ length: net.blocks }, (_, k) => linear(w, `blocks.${k}.modulate`, c));
  return net.kept = { logSnr, label, kin, kz, kf, blocks };
}

// The estimate of the data at z by the network itself (network.py, nn/mlp.py). `label` is a class or null.
function networkX0(net, about, z, logSnr, label) {
  lived++;
  const w = net.weights, { kin, kz, kf, blocks } = embedded(net, about, logSnr, label);
  let h = linear(w, "enter", Float64Array.of(kin * z[0], kin * z[1]));
  blocks.forEach((both, k) => {
    const n = h.length, inner = linear(w, `blocks.${k}.inner`, normalised(w, `blocks.${k}.norm`, h));
    const outer = linear(w, `blocks.${k}.outer`, inner.map((v, i) => silu(v * (1 + both[i]) + both[n + i])));
    h = h.map((v, i) => v + outer[i]);
  });
  const f = linear(w, "leave.2", normalised(w, "leave.0", h).map(silu));
  return [kz * z[0] + kf * f[0], kz * z[1] + kf * f[1]];
}

// The number at the share f of the way from a to b. An end without weight may be a hole.
function between(f, a, b) {
  if (f === 0) return a;
  return f === 1 ? b : a + f * (b - a);
}

// The estimates of a table (table.py) at n points with coordinates xs and ys, into the arrays of `out`.
function tableX0(table, xs, ys, logSnr, out) {
  const [, levels, size] = table.values.shape, v = table.values.values, plane = size * size, scale = (size - 1) / (2 * table.half);
  const within = (a, most) => Math.min(Math.max(a, 0), most);
  const height = within((logSnr - table.low) / (table.high - table.low) * (levels - 1), levels - 1);
  const l = Math.min(Math.floor(height), levels - 2), lf = height - l, last = size - 1;
  for (let n = 0; n < xs.length; n++) {
    const x = within((xs[n] + table.half) * scale, last), y = within((ys[n] + table.half) * scale, last);
    const i = Math.min(Math.floor(x), last - 1), j = Math.min(Math.floor(y), last - 1), xf = x - i, yf = y - j;
    for (let d = 0; d < 2; d++) {
      const a = (d * levels + l) * plane + j * size + i, b = a + size, e = a + plane, f = e + size;
      const near = between(yf, between(xf, v[a], v[a + 1]), between(xf, v[b], v[b + 1]));
      out[d][n] = between(lf, near, between(yf, between(xf, v[e], v[e + 1]), between(xf, v[f], v[f + 1])));
    }
  }
  return out;
}

// A DDIM step from one log-SNR to the next, with the noise of ancestral sampling for eta = 1 (solvers/stochastic.py):
// z' = c' x0 + sqrt(s'^2 - n^2) eps + n noise,  n = eta sqrt(s^2 - (c/c')^2 s'^2) s'/s,  eps = (z - c x0)/s.
function stepper(from, to, eta) {
  const [c, s] = angle(from), [c1, s1] = angle(to);
  const n = eta * Math.sqrt(Math.max(0, s * s - (c / c1) ** 2 * s1 * s1)) * s1 / s;
  const kept = Math.sqrt(Math.max(0, s1 * s1 - n * n)) / s;
  return (z, x0, noise) => c1 * x0 + kept * (z - c * x0) + n * noise;
}

// Turn an arrow in the plane so that its cosine to what it was is `accuracy`, to the left or to the right.
function turned(x, y, accuracy, side) {
  const across = side * Math.sqrt(Math.max(0, 1 - accuracy * accuracy));
  return [accuracy * x - across * y, accuracy * y + across * x];
}

const cosine = (a, b) => (a[0] * b[0] + a[1] * b[1]) / (Math.hypot(...a) * Math.hypot(...b));

// Standard normal numbers from a seed (mulberry32 and Box-Muller).
function normals(seed) {
  let state = seed * 2654435761 + 1 | 0;
  const uniform = () => {
    state = state + 0x6D2B79F5 | 0;
    let t = Math.imul(state ^ state >>> 15, 1 | state);
    t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t;
    return ((t ^ t >>> 14) >>> 0) / 4294967296;
  };
  return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
}

function normalArray(seed, count) { const draw = normals(seed); return Float64Array.from({ length: count }, draw); }

// The error of the table, measured as table.py does: at noisy data, row i at the i-th log-SNR.
function tableError(data, live) {
  const { about } = data, set = data.forward[data.forward.length - 1], n = set.x0.shape[1], gaps = [];
  for (let i = 0; i < n; i++) {
    const logSnr = about.low + (i + 0.5) / n * (about.high - about.low), [c, s] = angle(logSnr);
    const z = [0, 1].map((d) => c * set.x0.values[d * n + i] + s * set.eps.values[d * n + i]);
    const [x, y] = tableX0(data.table[0], [z[0]], [z[1]], logSnr, [[0], [0]]), truth = live(z, logSnr);
    const gap = Math.hypot(x[0] - truth[0], y[0] - truth[1]);
    if (Number.isFinite(gap)) gaps.push(gap);
  }
  gaps.sort((a, b) => a - b);
  const at = 0.99 * (gaps.length - 1), i = Math.floor(at);
  const most = gaps[i] + (at - i) * ((gaps[i + 1] ?? gaps[i]) - gaps[i]);
  return { rms: Math.sqrt(gaps.reduce((sum, g) => sum + g * g, 0) / gaps.length), most, count: gaps.length };
}

// ------------------------------------------------------------------------------------------------------------ drawing

const HUES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]; // Okabe and Ito
const theme = {};

function readTheme() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["ink", "soft", "panel", "line", "accent", "grid", "shade"]) theme[name] = style.getPropertyValue(`--${name}`).trim();
}

// A rectangle of a canvas with axes: X and Y convert values to pixels.
class Panel {
  constructor(g, x, y, w, h, xs, ys) { Object.assign(this, { g, x, y, w, h, xs, ys }); }
  X(v) { return this.x + (v - this.xs[0]) / (this.xs[1] - this.xs[0]) * this.w; }
  Y(v) { return this.y + this.h - (v - this.ys[0]) / (this.ys[1] - this.ys[0]) * this.h; }

  clipped(draw) {
    this.g.save(); this.g.beginPath(); this.g.rect(this.x, this.y, this.w, this.h); this.g.clip();
    draw(); this.g.restore();
  }

  // Ticks are [value, text]; a title goes above the panel, inside its top margin.
  axes(xticks, yticks, title = "") {
    const { g } = this;
    g.strokeStyle = theme.line; g.lineWidth = 1; g.strokeRect(this.x, this.y, this.w, this.h);
    g.fillStyle = theme.soft; g.font = "11px system-ui, sans-serif";
    g.textAlign = "center"; g.textBaseline = "top";
    for (const [v, text] of xticks) {
      const x = this.X(v);
      g.textAlign = isNaN(text.replace("−", "-")) ? (x > this.x + this.w / 2 ? "right" : "left") : "center"; // words stay inside
      g.fillText(text, x, this.y + this.h + 4);
    }
    g.textAlign = "right"; g.textBaseline = "middle";
    for (const [v, text] of yticks) g.fillText(text, this.x - 4, this.Y(v));
    if (title) label(g, title, this.x, this.y - 8);
  }
}

function label(g, text, x, y, colour = theme.ink, align = "left") {
  g.fillStyle = colour; g.font = "12px system-ui, sans-serif"; g.textAlign = align; g.textBaseline = "alphabetic";
  g.fillText(text, x, y);
}

// Round ticks between two numbers, as [place, text], where `shown` converts a place to the number in the text.
function ticks(low, high, count, shown = (v) => v, place = (v) => v) {
  const [a, b] = [shown(low), shown(high)], rough = (b - a) / count, power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 5, 10].map((k) => k * power).find((k) => k >= rough), found = [];
  for (let v = Math.ceil(a / size) * size; v <= b + 1e-9 * size; v += size) found.push([place(v), `${+v.toFixed(6)}`.replace("-", "−")]);
  return found;
}

// Small marks, whose shape and colour say their group, so that colour alone says nothing.
function dots(panel, xs, ys, group, size = 2.2) {
  const { g } = panel;
  for (let k = 0; k < HUES.length; k++) {
    g.fillStyle = HUES[k]; g.beginPath();
    for (let i = 0; i < xs.length; i++) {
      if ((group ? group[i] : 0) !== k || !(Math.abs(xs[i]) + Math.abs(ys[i]) < 1e9)) continue;
      const x = panel.X(xs[i]), y = panel.Y(ys[i]), s = size;
      if (k % 3 === 0) g.rect(x - s * 0.8, y - s * 0.8, 1.6 * s, 1.6 * s);
      else if (k % 3 === 1) { g.moveTo(x, y - 1.2 * s); g.lineTo(x + 1.1 * s, y + 0.9 * s); g.lineTo(x - 1.1 * s, y + 0.9 * s); }
      else { g.moveTo(x, y - 1.3 * s); g.lineTo(x + 1.3 * s, y); g.lineTo(x, y + 1.3 * s); g.lineTo(x - 1.3 * s, y); }
    }
    g.fill();
  }
}

// Arrows [x, y, dx, dy] in pixels, as one path for the shafts and one for the heads.
function arrows(g, all, colour, width, head) {
  g.strokeStyle = g.fillStyle = colour; g.lineWidth = width;
  const long = all.map(([x, y, dx, dy]) => [x + dx, y + dy, dx, dy, Math.hypot(dx, dy)]).filter((v) => v[4] > 0.5);
  g.beginPath();
  for (const [x, y, dx, dy] of long) { g.moveTo(x - dx, y - dy); g.lineTo(x - 0.2 * dx, y - 0.2 * dy); }
  g.stroke(); g.beginPath();
  for (const [x, y, dx, dy, length] of long) {
    const top = Math.min(head, length * 0.6), a = dx / length * top, b = dy / length * top;
    g.moveTo(x, y); g.lineTo(x - a - 0.55 * b, y - b + 0.55 * a); g.lineTo(x - a + 0.55 * b, y - b - 0.55 * a);
  }
  g.fill();
}

function line(panel, xs, ys, colour, width = 1.5, dash = []) {
  const { g } = panel;
  g.strokeStyle = colour; g.lineWidth = width; g.setLineDash(dash); g.beginPath();
  let on = false;
  for (let i = 0; i < xs.length; i++) {
    if (!Number.isFinite(ys[i])) { on = false; continue; }
    if (on) g.lineTo(panel.X(xs[i]), panel.Y(ys[i])); else g.moveTo(panel.X(xs[i]), panel.Y(ys[i]));
    on = true;
  }
  g.stroke(); g.setLineDash([]);
}

const scratch = typeof document === "undefined" ? null : document.createElement("canvas");

function pixel(bytes, i, r, g, b, a) { bytes[4 * i] = r; bytes[4 * i + 1] = g; bytes[4 * i + 2] = b; bytes[4 * i + 3] = a; }

// An image of rows x columns pixels in a rectangle. `paint(bytes, i)` writes the four bytes of pixel i, from the top left.
function picture(g, rows, columns, paint, x, y, w, h, smooth) {
  scratch.width = columns; scratch.height = rows;
  const inner = scratch.getContext("2d"), image = inner.createImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) paint(image.data, i);
  inner.putImageData(image, 0, 0);
  g.imageSmoothingEnabled = smooth;
  g.drawImage(scratch, x, y, w, h);
}

// -------------------------------------------------------------------------------------------------------- the figures

let data, about; // the numbers of the page
const controls = new Map(); // by id: {input, initial, say, figure}
const value = (id) => { const { input } = controls.get(id); return input.type === "range" ? +input.value : input.value; };
const round = (v, digits = 2) => (Number.isFinite(v) ? `${+v.toPrecision(digits)}`.replace("-", "−") : "no number");
const fixed = (v, digits = 2) => (v.toFixed(digits).replace("-", "−"));
const percent = (share) => (share > 0 && share < 1e-4 ? "less than 0.01 %" : share < 0.005 ? `${round(100 * share, 1)} %` : `${Math.round(100 * share)} %`);
const spoken = (logSnr) => `log-SNR ${fixed(logSnr, 1)}, ${percent(sigmoid(-logSnr))} noise`;

// The log-SNR at a slider's r, within that of the model.
const within = (r) => Math.min(Math.max(logSnrOf(Math.min(Math.max(r, 1e-9), 1 - 1e-9)), about.low), about.high);

// Angle, size and log-SNR of a path at the share `part` of its time, from 0 to 1.
function along(path, part) {
  const n = path.curves.shape[1], v = path.curves.values, at = part * (n - 1), i = Math.min(Math.floor(at), n - 2), f = at - i;
  const [turn, size] = [0, n].map((row) => v[row + i] * (1 - f) + v[row + i + 1] * f);
  return { t: path.low + part * (path.high - path.low), turn, size, logSnr: 2 * Math.log(Math.max(Math.cos(turn), 1e-9) / Math.sin(turn)), left: Math.cos(turn) ** 2 };
}

const view = () => Math.min(+(controls.get("class")?.input.value || 0), about.views.length - 1);
const viewName = () => (about.views.length > 1 ? ` Class: ${about.views[view()].name}.` : "");
const toData = (v, d) => v * about.scale[d] + about.shift[d];
const coordinate = (v, d) => fixed(toData(v, d), Math.min(6, Math.max(0, 2 - Math.floor(Math.log10(about.scale[d] * about.half)))));
const toModel = (v, d) => (v - about.shift[d]) / about.scale[d];

// A square panel of the plane, with ticks in data units. `size` is the factor by which states were divided.
function planePanel(g, x, y, w, title = "", size = 1, half = about.half, bare = false) {
  const panel = new Panel(g, x, y, w, w, [-half, half], [-half, half]);
  const few = (d) => ticks(-half, half, 6, (v) => toData(v * size, d), (v) => toModel(v, d) / size);
  panel.axes(bare ? [] : few(0), bare ? [] : few(1), title);
  return panel;
}

// The states c x_0 + s eps of every `stride`-th point of a set, and the groups of these points.
function noisy(set, c, s, stride = 1) {
  const n = set.x0.shape[1], count = Math.ceil(n / stride), out = room(count), x0 = set.x0.values, eps = set.eps.values;
  for (let d = 0; d < 2; d++) for (let i = 0; i < count; i++) out[d][i] = c * x0[d * n + i * stride] + s * eps[d * n + i * stride];
  return out;
}

const groups = (set, stride = 1) => Float64Array.from({ length: Math.ceil(set.colour.values.length / stride) }, (_, i) => Math.round(255 * set.colour.values[i * stride]));

// Groups by direction, for points of which nothing else is known.
const directions = (xs, ys) => Array.from(xs, (x, i) => Math.min(5, Math.floor((Math.atan2(ys[i], x) / (2 * Math.PI) + 1) % 1 * 6)));

const density = { at: null, most: 0, shades: new Float64Array(64 * 64) }; // of the last log-SNR

// The density of noisy data, or noisy data themselves where it is unknown.
function behind(panel, logSnr) {
  if (!data.mixture) {
    const own = data.forward[data.forward.length - 1], [c, s] = angle(logSnr), [xs, ys] = noisy(own, c, s), { g } = panel;
    g.fillStyle = `rgba(${theme.shade}, .35)`;
    for (let i = 0; i < xs.length; i++) g.fillRect(panel.X(xs[i]) - 1, panel.Y(ys[i]) - 1, 2.2, 2.2);
    return;
  }
  const n = 64, shades = density.shades, cell = 2 * about.half / n;
  if (density.at !== logSnr) {
    Object.assign(density, { at: logSnr, most: 0 });
    for (let j = 0; j < n; j++) for (let i = 0; i < n; i++) {
      const p = mixtureDensity(data.mixture, (i + 0.5) * cell - about.half, about.half - (j + 0.5) * cell, logSnr);
      shades[j * n + i] = p; density.most = Math.max(density.most, p);
    }
  }
  const { most } = density;
  const [r, b, l] = theme.shade.split(",").map(Number);
  picture(panel.g, n, n, (bytes, i) => pixel(bytes, i, r, b, l, 190 * Math.sqrt(shades[i] / most)), panel.x, panel.y, panel.w, panel.h, true);
}

// What the model says at one point: the mixture, the network (at most eight times in a frame), or else the table.
function live(z, logSnr) {
  if (about.exact) return mixtureX0(data.mixture, z, logSnr);
  if (data.network) return networkX0(data.network, about, z, logSnr, about.views[view()].label);
  const out = tableX0(data.table[view()], Float64Array.of(z[0]), Float64Array.of(z[1]), logSnr, room(1));
  return [out[0][0], out[1][0]];
}

const room = (n) => [new Float64Array(n), new Float64Array(n)]; // always typed arrays, so that the engine compiles one version

const rootMean = (values) => Math.sqrt(values.reduce((sum, v) => sum + v * v, 0) / values.length);

// States of recorded paths at a place between two frames.
function recorded(states, place) {
  const [, n, frames] = states.shape, v = states.values, i = Math.min(Math.floor(place), frames - 2), f = place - i;
  return [0, 1].map((d) => Float64Array.from({ length: n }, (_, k) => {
    const at = (d * n + k) * frames + i;
    return v[at] * (1 - f) + v[at + 1] * f;
  }));
}

const MARGIN = { left: 34, top: 24, right: 10, bottom: 22 };
const square = (g, w, title, size) => planePanel(g, MARGIN.left, MARGIN.top, w - MARGIN.left - MARGIN.right, title, size);
const squareHeight = (w) => w - MARGIN.left - MARGIN.right + MARGIN.top + MARGIN.bottom;

// Two places side by side, or one above the other where it is narrow: [x, y, width, height] of the panels.
function pair(w, h, share = 0.5) {
  const { left, top, right, bottom } = MARGIN;
  if (w < 560) return [[left, top, w - left - right, h / 2 - top - bottom], [left, h / 2 + top, w - left - right, h / 2 - top - bottom]];
  const first = (w - 2 * (left + right)) * share;
  return [[left, top, first, h - top - bottom], [2 * left + right + first, top, w - 2 * (left + right) - first, h - top - bottom]];
}

const wideHeight = (w) => (w < 560 ? Math.round(1.75 * w) : Math.round(0.44 * w));

// Rows of pictures, signals or projected points: `block` is (frames, n, ...event), drawn in a rectangle.
function drawRow(g, block, frame, x, y, w, h, title) {
  const [, n, ...event] = block.shape, size = event.reduce((a, b) => a * b, 1), start = frame * n * size, v = block.values;
  if (title) label(g, title, x, y - 6);
  if (about.kind === "points") {
    const side = Math.min(w, h), panel = new Panel(g, x, y, side, side, about.window[0], about.window[1]);
    panel.axes(ticks(...about.window[0], 4), ticks(...about.window[1], 4));
    const xs = Array.from({ length: n }, (_, i) => v[start + 2 * i]), ys = Array.from({ length: n }, (_, i) => v[start + 2 * i + 1]);
    return panel.clipped(() => dots(panel, xs, ys, null, 2));
  }
  const across = about.kind === "image" ? event[2] / event[1] : 2.5;
  let columns = 1;
  for (let c = 1; c <= n; c++) if (Math.min(w / c, h / Math.ceil(n / c) * across) > Math.min(w / columns, h / Math.ceil(n / columns) * across)) columns = c;
  const cell = Math.min(w / columns, h / Math.ceil(n / columns) * across);
  for (let k = 0; k < n; k++) {
    const cx = x + (k % columns) * cell, cy = y + Math.floor(k / columns) * cell / across, at = start + k * size;
    if (about.kind === "image") {
      const plane = event[1] * event[2], shade = (i, c) => 255 * v[at + (event[0] === 3 ? c : 0) * plane + i];
      picture(g, event[1], event[2], (bytes, i) => pixel(bytes, i, shade(i, 0), shade(i, 1), shade(i, 2), 255), cx + 2, cy + 2, cell - 4, cell / across - 4, event[1] > 64);
    } else {
      const panel = new Panel(g, cx + 3, cy + 3, cell - 6, cell / across - 6, [0, event[1] - 1], about.window[1]);
      g.strokeStyle = theme.line; g.lineWidth = 1; g.strokeRect(panel.x, panel.y, panel.w, panel.h);
      panel.clipped(() => { for (let c = 0; c < event[0]; c++) line(panel, Array.from({ length: event[1] }, (_, i) => i), v.slice(at + c * event[1], at + (c + 1) * event[1]), HUES[c % 6], 1); });
    }
  }
}

const nearest = (levels, logSnr) => levels.reduce((best, l, i) => (Math.abs(ratio(l) - ratio(logSnr)) < Math.abs(ratio(levels[best]) - ratio(logSnr)) ? i : best), 0);

const figures = {};

figures.forward = {
  height: (w) => (about.kind === "plane" || about.kind === "points" ? squareHeight(w) : Math.round(0.8 * w)),
  setUp() {
    choice("forward-path", data.paths.map((path) => path.name));
    const now = () => along(data.paths[+value("forward-path") || 0], +controls.get("forward-time").input.value / 200);
    slider("forward-time", 0, 200, 1, 30, () => { const p = now(); return `t = ${fixed(p.t)}, ${spoken(p.logSnr)}`; });
    if (about.kind === "plane") choice("forward-set", data.forward.map((set) => set.name));
  },
  draw(g, w, h) {
    const path = data.paths[+value("forward-path")], p = along(path, value("forward-time") / 200), c = Math.cos(p.turn), s = Math.sin(p.turn);
    const told = `At t = ${fixed(p.t)} on the path ${path.name}, ${percent(1 - p.left)} of the variance is noise (log-SNR ${fixed(p.logSnr, 1)}).`;
    if (about.kind !== "plane") {
      const frame = nearest(data.forward.log_snr, p.logSnr);
      drawRow(g, data.forward.frames, frame, MARGIN.left, MARGIN.top, w - MARGIN.left - MARGIN.right, h - MARGIN.top - MARGIN.bottom);
      return `${told} ${about.shown}`;
    }
    const set = data.forward[+value("forward-set")], panel = square(g, w, "", p.size), [xs, ys] = noisy(set, c, s);
    panel.clipped(() => {
      dots(panel, xs, ys, groups(set));
      const radius = s * panel.w / (2 * about.half), at = Math.max(radius, 8) + 8;
      g.strokeStyle = theme.ink; g.lineWidth = 1.5; g.beginPath(); g.arc(panel.x + panel.w - at, panel.y + at, Math.max(radius, 0.5), 0, 7); g.stroke();
    });
    const away = Math.abs(p.size - 1) > 0.01 ? ` The state itself is ${round(p.size, 3)} times as large as it would be on a path that keeps the variance; the axes show its true size.` : "";
    const gone = c > 0.02 ? ` Details smaller than ${round(s / c)} model units cannot be seen any more; the data are about 2 to 4 model units wide.` : " Nothing can be seen of the data any more.";
    return told + gone + away;
  },
};

// The log-SNR between two recorded levels, at a place such as 2.4.
function levelAt(levels, place) {
  const i = Math.min(Math.floor(place), levels.length - 2), f = place - i;
  return logSnrOf(ratio(levels[i]) * (1 - f) + ratio(levels[i + 1]) * f);
}

figures.reverse = {
  height: (w) => (about.kind === "plane" ? squareHeight(w) : about.kind === "points" ? Math.round(0.62 * w) : Math.round(1.1 * w)),
  setUp() {
    const found = data.reverse[0], last = found.note ? 1 : found.log_snr.length - 1, steps = about.kind === "plane" ? 5 : 1;
    slider("reverse-time", 0, last * steps, 1, Math.round(last * steps * 0.6), (v) => {
      const levels = data.reverse[view()].log_snr;
      return levels ? spoken(levelAt(levels, v / steps)) : "no paths";
    });
    if (about.kind === "plane") choice("reverse-shown");
  },
  draw(g, w, h) {
    const found = data.reverse[view()];
    if (found.note) return missing(g, w, `There are no paths: ${found.note}`);
    const lost = found.failed ? ` ${found.failed} paths left out, because they met numbers that are not finite.` : "";
    if (about.kind !== "plane") {
      const frame = value("reverse-time"), left = MARGIN.left, wide = w - left - MARGIN.right, both = (h - 2 * MARGIN.top - 8) / 2;
      const beside = about.kind === "points", cell = (wide - 20) / 2;
      drawRow(g, found.states, frame, left, MARGIN.top, beside ? cell : wide, beside ? cell : both, "the state");
      drawRow(g, found.estimates, frame, beside ? left + cell + 34 : left, beside ? MARGIN.top : 2 * MARGIN.top + both, beside ? cell - 14 : wide, beside ? cell - 14 : both, "what the model sees in it");
      return `At ${spoken(found.log_snr[frame])}: ${found.states.shape[1]} samples ${frame === found.log_snr.length - 1 ? "that have arrived" : "on their way"}. ${about.shown}${viewName()}${lost}`;
    }
    const place = value("reverse-time") / 5, levels = found.log_snr;
    const logSnr = levelAt(levels, place), [xs, ys] = recorded(found.states, place);
    const ends = recorded(found.states, levels.length - 1), seen = tableX0(data.table[view()], xs, ys, logSnr, room(xs.length));
    const estimate = value("reverse-shown") === "estimate", group = directions(...ends), panel = square(g, w, estimate ? "what the model sees" : "the state");
    panel.clipped(() => {
      for (let k = 0; k < (estimate ? 0 : Math.min(20, xs.length)); k++) { // where a state came from
        const at = (d, now) => [...Array.from({ length: Math.floor(place) + 1 }, (_, j) => found.states.values[(d * xs.length + k) * levels.length + j]), now[k]];
        line(panel, at(0, xs), at(1, ys), theme.soft, 0.6);
      }
      dots(panel, ...(estimate ? seen : [xs, ys]), group);
    });
    const gaps = Array.from(xs, (_, k) => Math.hypot(seen[0][k] - ends[0][k], seen[1][k] - ends[1][k])).filter(Number.isFinite), gap = rootMean(gaps);
    const enough = gap < 0.1 ? "so one step suffices from here" : "so one step does not suffice from here";
    return `At ${spoken(logSnr)}: ${xs.length} states ${place === levels.length - 1 ? "at the end of their way" : "on their way"} to samples. A single step from here would end ${round(gap)} model units from the end of the path (root mean square), ${enough}.${viewName()}${lost}`;
  },
};

figures.compass = {
  height: squareHeight,
  walkers: null,
  setUp() {
    const level = (v) => spoken(within(v / 200));
    slider("compass-noise", Math.ceil(200 * ratio(about.high)), Math.floor(200 * ratio(about.low)), 1, 100, level);
    slider("compass-accuracy", 0, 100, 1, 100, (v) => `${v} %`);
    slider("compass-x", -100, 100, 1, 30, (v) => `${about.names[0]} = ${coordinate(v / 100 * about.half, 0)}`);
    slider("compass-y", -100, 100, 1, -40, (v) => `${about.names[1]} = ${coordinate(v / 100 * about.half, 1)}`);
    movable("compass", "compass-x", "compass-y", (w) => [MARGIN.left, MARGIN.top, w - MARGIN.left - MARGIN.right], about.half);
    document.getElementById("compass-walk").addEventListener("click", () => { this.release(); touch("compass"); });
  },
  release() {
    const draw = normals(7), start = angle(about.low)[1];
    this.walkers = { places: Array.from({ length: 8 }, () => [[start * draw(), start * draw()]]), draw, at: 0, steps: 48, accuracy: value("compass-accuracy") / 100 };
  },
  // One step of the eight walkers; true while they walk.
  move() {
    const walk = this.walkers;
    if (!walk || walk.at >= walk.steps) return false;
    const first = ratio(about.low), last = ratio(about.high), level = (k) => within(first + (last - first) * k / walk.steps);
    const from = level(walk.at), to = level(walk.at + 1), next = stepper(from, to, 0);
    for (const places of walk.places) {
      const z = places[places.length - 1], seen = live(z, from);
      const [dx, dy] = turned(seen[0] - z[0], seen[1] - z[1], walk.accuracy, walk.draw() < 0 ? -1 : 1);
      places.push([next(z[0], z[0] + dx, 0), next(z[1], z[1] + dy, 0)]);
    }
    walk.at++;
    return true;
  },
  draw(g, w) {
    const walking = this.move(), logSnr = within(value("compass-noise") / 200), accuracy = value("compass-accuracy") / 100;
    const z = [value("compass-x") / 100 * about.half, value("compass-y") / 100 * about.half], key = [...z, logSnr, view()].join();
    if (this.key !== key && !walking) { this.key = key; this.seen = live(z, logSnr); } // no more than eight live points a frame
    const seen = this.seen || z, own = [seen[0] - z[0], seen[1] - z[1]], mine = turned(...own, accuracy, 1);
    const exact = data.mixture && !about.exact ? mixtureX0(data.mixture, z, logSnr) : null, panel = square(g, w);
    const [, s] = angle(logSnr), X = panel.X(z[0]), Y = panel.Y(z[1]), scale = panel.w / (2 * about.half);
    panel.clipped(() => {
      behind(panel, logSnr);
      for (const places of (walking && still() ? null : this.walkers?.places) || []) { // without motion, only their ends are shown
        line(panel, places.map((p) => p[0]), places.map((p) => p[1]), theme.soft, 1);
        const end = places[places.length - 1];
        dots(panel, [end[0]], [end[1]], [1], 4);
      }
      if (exact) arrows(g, [[X, Y, (exact[0] - z[0]) * scale, -(exact[1] - z[1]) * scale]], HUES[2], 6, 14);
      arrows(g, [[X, Y, mine[0] * scale, -mine[1] * scale]], theme.ink, 2.2, 11);
      g.strokeStyle = theme.ink; g.lineWidth = 1; g.setLineDash([3, 3]); g.beginPath(); g.arc(X, Y, s * scale, 0, 7); g.stroke(); g.setLineDash([]);
      g.fillStyle = HUES[1]; g.beginPath(); g.arc(X, Y, 5, 0, 7); g.fill();
    });
    if (walking) touch("compass");
    if (!Number.isFinite(own[0] + own[1])) return `At this state and ${spoken(logSnr)} the model returns no finite number.`;
    const near = exact ? ` The wide green arrow leads to what an exact model sees; the cosine of your arrow to it is ${fixed(cosine(mine, [exact[0] - z[0], exact[1] - z[1]]), 3)}.`
      : about.exact ? ` The model is exact, so the cosine of your arrow to the exact one is ${fixed(accuracy, 2)}.` : "";
    return `At (${coordinate(z[0], 0)}, ${coordinate(z[1], 1)}) and ${spoken(logSnr)} the model sees (${coordinate(seen[0], 0)}, ${coordinate(seen[1], 1)}). ${s * scale > 7 ? "The dashed circle is the size of the noise." : "The noise is smaller than the dot."}${near}${this.ended()}${viewName()}`;
  },
  ended() {
    const walk = this.walkers;
    if (!walk || walk.at < walk.steps) return "";
    const own = data.forward[data.forward.length - 1], n = own.x0.shape[1], v = own.x0.values;
    const far = walk.places.map((places) => {
      const [x, y] = places[places.length - 1];
      let best = Infinity;
      for (let i = 0; i < n; i++) best = Math.min(best, Math.hypot(v[i] - x, v[n + i] - y));
      return best;
    });
    return ` The walkers, at an accuracy of ${percent(walk.accuracy)}, ended ${round(far.reduce((a, b) => a + b) / 8)} model units from the nearest of ${n} data points on average.`;
  },
};

figures.field = {
  height: squareHeight,
  setUp() {
    slider("field-noise", Math.ceil(200 * ratio(about.high)), Math.floor(200 * ratio(about.low)), 1, 90, (v) => spoken(within(v / 200)));
  },
  draw(g, w) {
    const logSnr = within(value("field-noise") / 200), [c, s] = angle(logSnr), n = 24, cell = 2 * about.half / n, panel = square(g, w), [xs, ys] = room(n * n);
    for (let k = 0; k < n * n; k++) { xs[k] = (k % n + 0.5) * cell - about.half; ys[k] = (Math.floor(k / n) + 0.5) * cell - about.half; }
    const seen = tableX0(data.table[view()], xs, ys, logSnr, room(n * n)), score = Array.from(xs, (x, k) => [(c * seen[0][k] - x) / (s * s), (c * seen[1][k] - ys[k]) / (s * s)]);
    const sizes = score.map((v) => Math.hypot(...v) ** 0.25), longest = Math.max(...sizes.filter(Number.isFinite)), most = 1.05 * panel.w / n;
    const all = [];
    let holes = 0;
    panel.clipped(() => {
      behind(panel, logSnr);
      for (let k = 0; k < xs.length; k++) {
        const x = panel.X(xs[k]), y = panel.Y(ys[k]), size = Math.hypot(...score[k]);
        if (!Number.isFinite(size)) { // a hole: an empty square with a cross
          holes++; g.strokeStyle = HUES[1]; g.lineWidth = 1.5; g.beginPath();
          g.moveTo(x - 4, y - 4); g.lineTo(x + 4, y + 4); g.moveTo(x - 4, y + 4); g.lineTo(x + 4, y - 4); g.stroke();
          continue;
        }
        const long = sizes[k] / longest * most, dx = score[k][0] / size * long, dy = -score[k][1] / size * long;
        all.push([x - dx / 2, y - dy / 2, dx, dy]);
      }
      arrows(g, all, theme.ink, 1.1, 4.5);
    });
    const gone = holes ? ` At ${holes} of ${n * n} arrows (crosses) the model returns no finite number.` : "";
    const wide = s / c > 1.5 ? " The noise is wider than the data, so the arrows are those of one hill." : s / c < 0.3 ? " The noise is much narrower than the data, so each arrow points to the data nearby." : " The noise is about as wide as the details of the data, so the hill splits.";
    return `The score at ${spoken(logSnr)} over ${data.mixture ? "the exact density of the noisy data" : "noisy data"}.${wide}${gone}${viewName()}`;
  },
};

figures.flows = {
  height: wideHeight,
  setUp() {
    slider("flows-steps", 1, 200, 1, 60, (v) => `${v} step${v === 1 ? "" : "s"}`);
    slider("flows-eta", 0, 100, 1, 100, (v) => `${v} % of the reverse SDE's`);
    slider("flows-shown", 0, 100, 1, 100, (v) => `${v} %`);
    slider("flows-seed", 1, 999, 1, 1); // hidden: the button moves it, so the address has it
    document.getElementById("flows-noise").addEventListener("click", () => set("flows-seed", value("flows-seed") % 999 + 1));
  },
  // Paths of 64 points: first coordinates at each step, once without noise and once with noise.
  solve() {
    const steps = value("flows-steps"), seed = value("flows-seed"), key = [steps, value("flows-eta"), seed, view()].join();
    if (this.key === key) return;
    this.key = key;
    const first = ratio(about.low), last = ratio(about.high);
    this.levels = Array.from({ length: steps + 1 }, (_, k) => within(first + (last - first) * k / steps));
    if (this.noises?.seed !== seed) this.noises = { seed, start: normalArray(seed, 128), each: normalArray(seed + 5000, 200 * 128) };
    const { start, each } = this.noises, n = 64, size = angle(about.low)[1];
    const flow = this.flow === (this.flow = [steps, seed, view()].join()) ? this.paths[0] : null; // it has no eta
    this.paths = [0, value("flows-eta") / 100].map((eta, kind) => {
      if (!kind && flow) return flow;
      const z = [0, 1].map((d) => Float64Array.from({ length: n }, (_, i) => size * start[d * n + i])), seen = room(n), kept = [z[0].slice()];
      for (let k = 0; k < steps; k++) {
        const next = stepper(this.levels[k], this.levels[k + 1], eta);
        tableX0(data.table[view()], z[0], z[1], this.levels[k], seen);
        for (let d = 0; d < 2; d++) for (let i = 0; i < n; i++) z[d][i] = next(z[d][i], seen[d][i], each[(k * 2 + d) * n + i]);
        kept.push(z[0].slice());
      }
      return kept;
    });
  },
  draw(g, w, h) {
    this.solve();
    const own = data.forward[data.forward.length - 1], real = own.x0.values.slice(0, own.x0.shape[1]), bins = 24, cell = 2 * about.half / bins;
    const bar = (values) => { const found = new Float64Array(bins); for (let i = 0; i < values.length; i++) { const b = Math.floor((values[i] + about.half) / cell); if (b >= 0 && b < bins) found[b] += 1 / values.length; } return found; };
    const truth = this.truth ||= bar(real), shown = value("flows-shown") / 100, rs = this.levels.map(ratio), all = [];
    pair(w, h).forEach(([x, y, wide, high], k) => {
      const main = wide * 0.8, panel = new Panel(g, x, y, main, high, [rs[0], rs[rs.length - 1]], [-about.half, about.half]);
      panel.axes([[rs[0], "noise"], [rs[rs.length - 1], "data"]], ticks(-about.half, about.half, 5, (v) => toData(v, 0), (v) => toModel(v, 0)), `${k ? `SDE, share of noise ${fixed(value("flows-eta") / 100)}` : "ODE"}: ${about.names[0]}`);
      const kept = this.paths[k], until = Math.max(1, Math.round(shown * (kept.length - 1)));
      const stride = Math.ceil(kept.length / 120), shownSteps = rs.map((_, k) => k).filter((k) => k <= until && (k % stride === 0 || k === until)), last = kept[kept.length - 1];
      panel.clipped(() => {
        for (let hue = 0; hue < 6; hue++) { // paths have the colour of the place where they end
          g.strokeStyle = HUES[hue]; g.lineWidth = 1; g.beginPath();
          for (let i = 0; i < 64; i++) {
            if (Math.min(5, Math.max(0, Math.floor((last[i] / about.half + 1) * 3))) !== hue || !Number.isFinite(last[i])) continue;
            for (const k of shownSteps) { const X = panel.X(rs[k]), Y = panel.Y(kept[k][i]); if (k) g.lineTo(X, Y); else g.moveTo(X, Y); }
          }
          g.stroke();
        }
      });
      const ends = bar(kept[kept.length - 1]), top = Math.max(...truth, ...this.paths.flatMap((path) => [...bar(path[path.length - 1])])), side = wide * 0.17, at = x + main + wide * 0.03;
      all.push(kept[kept.length - 1]);
      for (let b = 0; b < bins; b++) {
        const low = panel.Y(-about.half + b * cell), up = panel.Y(-about.half + (b + 1) * cell);
        if (shown === 1) { g.fillStyle = HUES[5]; g.fillRect(at, up + 0.5, ends[b] / top * side, low - up - 1); }
        g.strokeStyle = theme.ink; g.lineWidth = 1.5; g.beginPath(); g.moveTo(at + truth[b] / top * side, low); g.lineTo(at + truth[b] / top * side, up); g.stroke();
      }
    });
    const finite = (v) => Array.from(v).filter(Number.isFinite), mean = (v) => rootMean(finite(v)), apart = mean(all[0].map((v, i) => v - all[1][i]));
    const lost = 128 - finite(all[0]).length - finite(all[1]).length, gone = lost ? ` ${lost} of the 128 paths met numbers that are not finite and are left out.` : "";
    const few = this.levels.length < 12 ? " With so few steps, neither end is that of the data." : "";
    return `Sixty-four paths of ${this.levels.length - 1} step${this.levels.length === 2 ? "" : "s"} from the same noise. Bars: where they end; dark lines: ${real.length} data points. In model units, the root mean square of ${about.names[0]} at the end is ${round(mean(all[0]), 3)} for the ODE, ${round(mean(all[1]), 3)} for the SDE and ${round(mean(real), 3)} for the data. From the same noise, the two end ${round(apart, 2)} apart.${few}${gone}${viewName()}`;
  },
};

const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3], [4, 2]];

figures.schedules = {
  height: (w) => (w < 560 ? Math.round(1.35 * w) : Math.round(0.5 * w)),
  setUp() {
    slider("schedules-time", 0, 200, 1, 100, (v) => `${v / 2} % of the time`);
  },
  draw(g, w, h) {
    const part = value("schedules-time") / 200, { top, right } = MARGIN, left = MARGIN.left + 8, count = data.paths.length, gap = 8;
    const cell = Math.min((w - left - right + gap) / count - gap, 0.42 * h), high = h - cell - 98;
    const panel = new Panel(g, left, top, w - left - right, high, [0, 1], [0, 1.02]), told = [];
    panel.axes([[0, "data"], [1, "noise"]], [0, 0.5, 1].map((v) => [v, `${100 * v} %`]), "share of the variance that is data");
    data.paths.forEach((path, k) => {
      const xs = Array.from({ length: 101 }, (_, i) => i / 100), p = along(path, part), x = left + k * (cell + gap), y = h - cell - 24;
      line(panel, xs, path.left ||= xs.map((v) => along(path, v).left), HUES[k % 6], 2, DASHES[k % 5]);
      told.push(`${path.name} keeps ${percent(p.left)}`);
      g.strokeStyle = HUES[k % 6]; g.lineWidth = 2; g.setLineDash(DASHES[k % 5]); g.beginPath(); g.moveTo(x, y - 26); g.lineTo(x + Math.min(cell, 28), y - 26); g.stroke(); g.setLineDash([]);
      g.save(); g.beginPath(); g.rect(x, y - 24, cell, 20); g.clip(); label(g, path.name.replace("this model: ", ""), x, y - 10); g.restore();
      if (about.kind === "plane") {
        const set = data.forward[0], small = planePanel(g, x, y, cell, "", 1, about.half, true), [xx, yy] = noisy(set, Math.cos(p.turn), Math.sin(p.turn), 2);
        small.clipped(() => dots(small, xx, yy, groups(set, 2), 1));
      } else {
        const frame = nearest(data.forward.log_snr, p.logSnr), { shape, values } = data.forward.frames, n = about.kind === "points" ? shape[1] : 1, size = shape.slice(2).reduce((a, b) => a * b, 1);
        drawRow(g, { shape: [1, n, ...shape.slice(2)], values: values.slice(frame * shape[1] * size, (frame * shape[1] + n) * size) }, 0, x, y, cell, cell);
      }
      label(g, percent(p.left), x, h - 8);
    });
    g.strokeStyle = theme.soft; g.lineWidth = 1; g.beginPath(); g.moveTo(panel.X(part), panel.y); g.lineTo(panel.X(part), panel.y + panel.h); g.stroke();
    return `After ${round(100 * part, 3)} % of the time, ${told.join(", ")} of the variance as data.`;
  },
};

figures.solvers = {
  height: (w) => (about.kind === "plane" ? wideHeight(w) : Math.round((w < 560 ? 1.9 : 0.44) * w)),
  rows: (name) => data.solvers.rows.map((row, i) => ({ ...row, i })).filter((row) => row.solver === name),
  setUp() {
    const names = [...new Set(data.solvers.rows.map((row) => row.solver))], some = names.length ? this.rows(names[0]) : [{}];
    choice("solvers-name", names, 0, true);
    slider("solvers-budget", 0, some.length - 1, 1, Math.min(2, some.length - 1), (v) => `${some[v].asked} evaluation${some[v].asked === 1 ? "" : "s"}`);
  },
  draw(g, w, h) {
    if (data.solvers.note) return missing(g, w, `The solvers could not be compared: ${data.solvers.note}`);
    const row = this.rows(value("solvers-name"))[value("solvers-budget")], { ends } = data.solvers, [, n, ...rest] = ends.shape, size = ends.values.length / ends.shape[0];
    const [one, two] = pair(w, h, about.kind === "plane" ? Math.min(0.5, (h - 46) / (w - 88)) : 0.5), mine = ends.values.slice(row.i * size, (row.i + 1) * size);
    if (about.kind === "plane") {
      const own = data.forward[data.forward.length - 1], side = Math.min(one[2], one[3]), panel = planePanel(g, one[0], one[1], side, `${row.solver}, ${row.asked} evaluation${row.asked === 1 ? "" : "s"}`), count = rest[0];
      panel.clipped(() => {
        g.fillStyle = theme.line;
        for (let i = 0; i < own.x0.shape[1]; i++) g.fillRect(panel.X(own.x0.values[i]) - 1, panel.Y(own.x0.values[own.x0.shape[1] + i]) - 1, 2, 2);
        dots(panel, mine.slice(0, count), mine.slice(count), null, 2.2);
      });
    } else drawRow(g, { shape: [1, n, ...rest], values: mine }, 0, one[0], one[1], one[2], one[3], `${row.solver}, ${row.asked} evaluation${row.asked === 1 ? "" : "s"}`);
    this.curves(g, two, row);
    const used = row.nfe && row.nfe !== row.asked ? ` (${row.nfe} used)` : "";
    const miss = row.note ? ` It cannot run: ${row.note}.` : ` Its samples are ${round(row.w2, 3)} from held-out data${data.solvers.floor ? `; real data are ${round(data.solvers.floor[0], 2)} to ${round(data.solvers.floor[1], 2)} from them` : ""}.`;
    const flow = row.rms === null || row.note ? "" : ` Its points end ${round(row.rms, 2)} from the end of the flow (root mean square).`;
    return `${row.solver} with ${row.asked} evaluation${row.asked === 1 ? "" : "s"}${used}.${miss}${flow}`;
  },
  curves(g, [x, y, w, h], now) {
    const known = data.solvers.rows.filter((row) => row.w2 > 0), key = known.length ? "w2" : "rms", rows = data.solvers.rows.filter((row) => row[key] > 0);
    if (!rows.length) return;
    const log = Math.log10, numbers = rows.map((row) => log(row[key])).concat((data.solvers.floor || []).map(log)), low = Math.min(...numbers), high = Math.max(...numbers), spare = 0.08 * (high - low) + 0.02;
    const panel = new Panel(g, x + 12, y, w - 12, h, [-0.08, log(Math.max(...rows.map((row) => row.nfe))) + 0.08], [low - spare, high + spare]);
    const tens = [];
    for (let power = Math.floor(low); power <= high + 1; power++) for (const k of [1, 2, 5]) { const v = power + log(k); if (v > panel.ys[0] && v < panel.ys[1]) tens.push([v, `${+(k * 10 ** power).toPrecision(1)}`]); }
    panel.axes([1, 2, 5, 10, 20, 50].map((v) => [log(v), `${v}`]).filter(([v]) => v < panel.xs[1]), tens, key === "w2" ? "sliced W2 to held-out data, by evaluations" : "distance to the end of the flow, by evaluations");
    if (key === "w2" && data.solvers.floor) {
      const [bottom, top] = data.solvers.floor.map((v) => panel.Y(log(v)));
      g.fillStyle = theme.grid; g.fillRect(panel.x, top, panel.w, bottom - top);
      label(g, "real data", panel.x + 6, (top + bottom) / 2 + 4, theme.soft);
    }
    [...new Set(rows.map((row) => row.solver))].forEach((name, k) => {
      const mine = rows.filter((row) => row.solver === name), xs = mine.map((row) => log(row.nfe)), ys = mine.map((row) => log(row[key]));
      line(panel, xs, ys, HUES[k], name === now.solver ? 3 : 1.5, DASHES[k]);
      dots(panel, xs, ys, xs.map(() => k), 4);
      const here = mine.findIndex((row) => row.i === now.i || (row.asked === now.asked && name === now.solver));
      if (here >= 0) { g.strokeStyle = theme.ink; g.lineWidth = 2; g.beginPath(); g.arc(panel.X(xs[here]), panel.Y(ys[here]), 8, 0, 7); g.stroke(); }
      const up = panel.y + 14 + 17 * k, side = panel.x + panel.w - 118;
      line(new Panel(g, side, up - 4, 26, 1, [0, 1], [0, 1]), [0, 1], [0, 0], HUES[k], 2.5, DASHES[k]);
      label(g, name, side + 32, up);
    });
  },
};

figures.density = {
  height: wideHeight,
  setUp() {
    slider("density-x", -100, 100, 1, 40, (v) => `${about.names[0]} = ${coordinate(v / 100 * about.half, 0)}`);
    slider("density-y", -100, 100, 1, 0, (v) => `${about.names[1]} = ${coordinate(v / 100 * about.half, 1)}`);
    movable("density", "density-x", "density-y", (w) => { const [[x, y, a, b]] = pair(w, wideHeight(w), this.share(w)); return [x, y, Math.min(a, b)]; }, about.half, true);
  },
  share: (w) => (w < 560 ? 0.5 : Math.min(0.5, (wideHeight(w) - 46) / (w - 88))),
  // A number between the nodes of a map of the density.
  at(map, z) {
    const n = map.shape[0], place = (v) => { const p = Math.min(Math.max((v / data.density.half + 1) / 2 * (n - 1), 0), n - 1), i = Math.min(Math.floor(p), n - 2); return [i, p - i]; };
    const [i, a] = place(z[0]), [j, b] = place(z[1]), v = (y, x) => map.values[y * n + x];
    return (v(j, i) * (1 - a) + v(j, i + 1) * a) * (1 - b) + (v(j + 1, i) * (1 - a) + v(j + 1, i + 1) * a) * b;
  },
  draw(g, w, h) {
    const [one, two] = pair(w, h, this.share(w)), side = Math.min(one[2], one[3]), found = data.density;
    const panel = planePanel(g, one[0], one[1], side, "log p, darker where it is larger"), z = [value("density-x") / 100 * about.half, value("density-y") / 100 * about.half];
    this.errors(g, two);
    if (found.note) return `There is no density: ${found.note}`;
    const n = found.log_prob.shape[0], v = found.log_prob.values, most = Math.max(...v.filter(Number.isFinite)), [r, b, l] = theme.shade.split(",").map(Number);
    panel.clipped(() => {
      // Nodes are in the middle of cells, so the picture is half a cell wider on each side.
      const cell = side / (n - 1);
      picture(g, n, n, (bytes, i) => { const p = v[(n - 1 - Math.floor(i / n)) * n + i % n]; Number.isFinite(p) ? pixel(bytes, i, r, b, l, 215 * Math.max(0, 1 + (p - most) / 12)) : pixel(bytes, i, 213, 94, 0, 120); }, one[0] - cell / 2, one[1] - cell / 2, side + cell, side + cell, true);
      g.strokeStyle = theme.ink; g.lineWidth = 1.5; g.beginPath();
      g.moveTo(panel.X(z[0]), panel.y); g.lineTo(panel.X(z[0]), panel.y + side); g.moveTo(panel.x, panel.Y(z[1])); g.lineTo(panel.x + side, panel.Y(z[1])); g.stroke();
      g.fillStyle = HUES[1]; g.beginPath(); g.arc(panel.X(z[0]), panel.Y(z[1]), 5, 0, 7); g.fill();
    });
    const p = this.at(found.log_prob, z), truth = found.truth ? this.at(found.truth, z) : NaN;
    if (!Number.isFinite(p)) return "Here the model has no finite log p.";
    const compared = Number.isFinite(truth) ? ` The data have log p = ${fixed(truth)}, so the error is ${fixed(p - truth)}.` : "";
    return `At (${coordinate(z[0], 0)}, ${coordinate(z[1], 1)}) log p = ${fixed(p)} nats. Solved to a tolerance ten times looser it changes by ${round(this.at(found.change, z), 1)}.${compared}`;
  },
  errors(g, [x, y, w, h]) {
    const found = data.compass;
    if (found.note) { label(g, "no comparison of scores", x, y + 20, theme.soft); return; }
    const levels = found.log_snr, count = levels.length, v = found.curves.values, row = (k, q) => levels.map((_, i) => v[(k * count + i) * 3 + q]);
    const half = h / 2 - 22, span = [levels[0], levels[count - 1]];
    [[data.compass.memorised ? "cosine to the exact score" : `cosine to ${found.against}`, [Math.min(0, ...row(0, 0)), 1.03], (a) => a], ["relative error", [-4, 1], (a) => Math.max(-4, Math.min(1, Math.log10(a)))]].forEach(([name, ys, turn], k) => {
      const panel = new Panel(g, x + 8, y + k * (half + 44), w - 8, half, span, ys);
      panel.axes(k ? [...ticks(Math.min(...span), Math.max(...span), 5), [span[0], "data"], [span[1], "noise"]].filter(([p], i, all) => i >= all.length - 2 || Math.min(Math.abs(p - span[0]), Math.abs(p - span[1])) > 1.8) : [], k ? [[-4, "10⁻⁴"], [-2, "0.01"], [0, "1"]] : [[-1, "−1"], [0, "0"], [1, "1"]].filter(([v]) => v >= ys[0]), name);
      panel.clipped(() => { for (const q of [0, 2]) line(panel, levels, row(k, q).map(turn), HUES[k], 1, [3, 3]); line(panel, levels, row(k, 1).map(turn), HUES[k], 2.5); });
    });
  },
};

// Say on the canvas itself why there is nothing to see.
function missing(g, w, text) {
  const words = text.split(" ");
  let row = "", y = 40;
  for (const word of [...words, null]) {
    if (word === null || (row + word).length > w / 7) { label(g, row, 20, y); row = ""; y += 18; }
    row += `${word} `;
  }
  return text;
}

// ----------------------------------------------------------------------------------------------------------- the page

const dirty = new Set(), seenNow = new Set(), playing = new Map(), times = [];
let waiting = 0, rest = 0, most = 0;

const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
const figureOf = (id) => id.split("-")[0];

// Ask for a figure to be drawn in the next frame.
function touch(name) {
  dirty.add(name);
  waiting ||= requestAnimationFrame(frame);
}

function touchAll() { for (const name of Object.keys(figures)) if (document.getElementById(name)) touch(name); }

function slider(id, low, high, size, initial, say) {
  const input = document.getElementById(id);
  Object.assign(input, { min: low, max: Math.max(low, high), step: size });
  input.value = initial;
  register(id, input, input.value, say);
}

// A menu; without names, the options are those of the document. The value of a named option is its place, or its name.
function choice(id, names = null, initial = 0, named = false) {
  const select = document.getElementById(id);
  if (names) select.replaceChildren(...names.map((name, i) => new Option(name, named ? name : i, i === initial, i === initial)));
  register(id, select, select.value, null);
}

function register(id, input, initial, say) {
  controls.set(id, { input, initial, say });
  input.addEventListener("input", () => { pause(id); changed(id); });
}

function tell(id) {
  const { input, say } = controls.get(id);
  if (!say) return;
  const text = say(+input.value);
  input.setAttribute("aria-valuetext", text);
  const output = document.querySelector(`output[for="${id}"]`);
  if (output) output.textContent = text;
}

function changed(id) {
  if (id === "class") { for (const key of controls.keys()) tell(key); touchAll(); } else {
    for (const key of controls.keys()) if (figureOf(key) === figureOf(id)) tell(key);
    touch(figureOf(id));
  }
}

function set(id, next) {
  const { input } = controls.get(id);
  input.value = next;
  changed(id);
}

// Clicks, drags and arrow keys on a canvas move two sliders. `place` gives the panel: x, y and side.
function movable(name, across, up, place, half, hover = false) {
  const canvas = document.querySelector(`#${name} canvas`);
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  const point = (event) => {
    const box = canvas.getBoundingClientRect(), [x, y, side] = place(box.width);
    set(across, Math.round(200 * (event.clientX - box.left - x) / side - 100));
    set(up, Math.round(100 - 200 * (event.clientY - box.top - y) / side));
  };
  canvas.addEventListener("pointerdown", point);
  canvas.addEventListener("pointermove", (event) => { if (event.buttons || (hover && event.pointerType === "mouse")) point(event); });
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [across, -2], ArrowRight: [across, 2], ArrowDown: [up, -2], ArrowUp: [up, 2] }[event.key];
    if (!move) return;
    event.preventDefault();
    set(move[0], value(move[0]) + move[1]);
  });
}

function play(button) {
  const id = button.dataset.plays, { input } = controls.get(id);
  if (playing.delete(id) || still()) { button.textContent = button.dataset.name; return; }
  button.textContent = "Pause";
  if (+input.value >= +input.max) input.value = input.min;
  playing.set(id, { button, at: +input.value, then: null });
  waiting ||= requestAnimationFrame(frame);
}

function pause(id) {
  const now = playing.get(id);
  if (now) now.button.textContent = now.button.dataset.name;
  playing.delete(id);
}

function advance(now) {
  for (const [id, play] of playing) {
    const { input } = controls.get(id), low = +input.min, high = +input.max;
    play.at = Math.min(high, play.at + (high - low) * (play.then === null ? 0 : (now - play.then) / 8000));
    play.then = now;
    if (Math.round(play.at) !== +input.value) set(id, Math.round(play.at));
    if (play.at >= high) pause(id);
  }
}

function frame(now) {
  const began = performance.now(), before = lived;
  waiting = 0;
  advance(now);
  for (const name of [...dirty].filter((each) => seenNow.has(each))) { dirty.delete(name); draw(name); }
  // What is out of view is drawn once, one figure in a frame, and again when it comes into view.
  const first = [...dirty].find((name) => !figures[name].said);
  if (first) { dirty.delete(first); draw(first); }
  most = Math.max(most, lived - before);
  times.push(performance.now() - began);
  if (times.length > 2000) times.shift();
  if (playing.size || [...dirty].some((name) => seenNow.has(name) || !figures[name].said)) waiting ||= requestAnimationFrame(frame);
  clearTimeout(rest);
  rest = setTimeout(settle, 250);
}

function draw(name) {
  const canvas = document.querySelector(`#${name} canvas`), figure = figures[name], scale = Math.min(devicePixelRatio || 1, 2);
  const w = canvas.parentElement.clientWidth, h = figure.height(w);
  if (!w) return;
  if (canvas.width !== Math.round(w * scale) || canvas.height !== Math.round(h * scale)) {
    canvas.width = Math.round(w * scale); canvas.height = Math.round(h * scale);
  }
  const g = canvas.getContext("2d");
  g.setTransform(scale, 0, 0, scale, 0, 0);
  g.clearRect(0, 0, w, h);
  figure.said = figure.draw(g, w, h).trim();
  canvas.parentElement.querySelector("figcaption").textContent = figure.said;
}

// What waits until nothing moves: the spoken sentences and the address.
function settle() {
  for (const [name, figure] of Object.entries(figures)) {
    if (figure.said) document.querySelector(`#${name} canvas`).setAttribute("aria-label", figure.said);
  }
  const kept = [...controls].filter(([, { input, initial }]) => input.value !== initial).map(([id, { input }]) => `${id}=${encodeURIComponent(input.value)}`).join("&");
  try {
    if (kept !== location.hash.slice(1)) history.replaceState(null, "", `#${kept}`);
  } catch { /* inside a frame without an address */ }
}

function readHash() {
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const [id, { input, initial }] of controls) {
    const next = asked.get(id) ?? initial, number = parseFloat(next);
    input.value = input.type === "range" ? (Number.isFinite(number) ? number : initial) : next;
    if (input.tagName === "SELECT" && input.selectedIndex < 0) input.value = initial; // not an option
  }
  for (const id of controls.keys()) tell(id);
  touchAll();
}

const state = () => Object.fromEntries([...controls].map(([id, { input }]) => [id, input.value]));

async function start() {
  data = await unpackAll(JSON.parse(document.getElementById("data").textContent));
  about = data.about;
  readTheme();
  if (about.views.length > 1) choice("class", about.views.map((each) => each.name));
  else for (const part of document.querySelectorAll("[data-for-classes]")) part.hidden = true;
  document.documentElement.classList.add("script");
  const eye = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) isIntersecting ? seenNow.add(target.id) : seenNow.delete(target.id);
    waiting ||= requestAnimationFrame(frame);
  }, { rootMargin: "200px" });
  for (const [name, figure] of Object.entries(figures)) {
    const section = document.getElementById(name);
    if (!section) continue;
    figure.setUp();
    eye.observe(section);
  }
  for (const button of document.querySelectorAll(".play")) {
    button.dataset.name = button.textContent;
    button.addEventListener("click", () => play(button));
  }
  document.getElementById("reset").addEventListener("click", () => { for (const [id, { initial }] of controls) { pause(id); set(id, initial); } figures.compass.walkers = null; });
  addEventListener("hashchange", readHash);
  addEventListener("resize", touchAll);
  addEventListener("beforeprint", () => { for (const name of Object.keys(figures)) if (document.getElementById(name)) draw(name); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readTheme(); touchAll(); });
  readHash();
}

return {
  unpack, unpackAll, half, angle, ratio, logSnrOf, mixtureX0, mixtureDensity, networkX0, tableX0, stepper, tableError, turned, start, state,
  times, get most() { return most; },
};
})();

if (typeof document === "undefined") module.exports = page;
else page.start();
