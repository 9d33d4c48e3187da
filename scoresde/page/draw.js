// Drawing on a canvas: panels with axes, marks, lines, pictures, and the charts that charts.py describes.

const HUES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]; // Okabe and Ito
const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3], [4, 2]];
const theme = {};

function readTheme() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["ink", "soft", "line", "grid", "shade"]) theme[name] = style.getPropertyValue(`--${name}`).trim();
}

// A rectangle [x, y, width, height] of a canvas with axes: X and Y convert values to pixels.
class Panel {
  constructor(g, box, xs, ys) {
    const [x, y, w, h] = box;
    Object.assign(this, { g, box, x, y, w, h, xs, ys });
  }

  X(v) { return this.x + (v - this.xs[0]) / (this.xs[1] - this.xs[0]) * this.w; }
  Y(v) { return this.y + this.h - (v - this.ys[0]) / (this.ys[1] - this.ys[0]) * this.h; }

  clipped(draw) {
    this.g.save();
    this.g.beginPath();
    this.g.rect(this.x, this.y, this.w, this.h);
    this.g.clip();
    draw();
    this.g.restore();
  }

  // Ticks are [value, text]. The title goes above the panel.
  axes(xticks, yticks, title = "") {
    const { g, x, y, w, h } = this;
    g.strokeStyle = theme.line;
    g.lineWidth = 1;
    g.strokeRect(x, y, w, h);
    for (const [v, text] of xticks) {
      const at = this.X(v), word = isNaN(text.replace("−", "-")) && Math.min(at - x, x + w - at) < 30;
      label(g, text, at, y + h + 14, theme.soft, word ? (at > x + w / 2 ? "right" : "left") : "center", 11); // words stay inside
    }
    for (const [v, text] of yticks) label(g, text, x - 4, this.Y(v) + 4, theme.soft, "right", 11);
    label(g, title, x, y - 8);
  }
}

function label(g, text, x, y, colour = theme.ink, align = "left", size = 12) {
  g.fillStyle = colour;
  g.font = `${size}px system-ui, sans-serif`;
  g.textAlign = align;
  g.fillText(text, x, y);
}

// Round ticks between two numbers, as [place, text], where `shown` converts a place to the number in the text.
function ticks(low, high, count, shown = (v) => v, place = (v) => v) {
  const [a, b] = [shown(low), shown(high)], rough = (b - a) / count, power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 5, 10].map((k) => k * power).find((k) => k >= rough), found = [];
  for (let v = Math.ceil(a / size) * size; v <= b + 1e-9 * size; v += size) {
    found.push([place(v), `${+v.toFixed(6)}`.replace("-", "−")]);
  }
  return found;
}

function stroke(g, colour, width, dash, path) {
  g.strokeStyle = colour;
  g.lineWidth = width;
  g.setLineDash(dash);
  g.beginPath();
  path();
  g.stroke();
  g.setLineDash([]);
}

// A line through points in pixels, as part of a path.
function through(g, [first, ...others]) {
  g.moveTo(...first);
  for (const point of others) g.lineTo(...point);
}

// A line through values of a panel, with gaps where they are not finite.
function line(panel, xs, ys, colour, width = 1.5, dash = []) {
  const { g } = panel;
  stroke(g, colour, width, dash, () => {
    for (let i = 0, on = false; i < ys.length; i++) {
      const X = panel.X(xs[i]), Y = panel.Y(ys[i]), known = Number.isFinite(Y);
      if (known && on) g.lineTo(X, Y);
      else if (known) g.moveTo(X, Y);
      on = known;
    }
  });
}

const circle = (g, x, y, radius, width, dash = []) => stroke(g, theme.ink, width, dash, () => g.arc(x, y, radius, 0, 7));

// Corners of a square, a triangle and a rhombus.
const MARKS = [
  [[-0.8, -0.8], [0.8, -0.8], [0.8, 0.8], [-0.8, 0.8]], [[0, -1.2], [1.1, 0.9], [-1.1, 0.9]], [[0, -1.3], [1.3, 0], [0, 1.3], [-1.3, 0]],
];

// Small marks, whose shape and colour say their group, so that colour alone says nothing. Without groups, all are of the first.
function dots(panel, xs, ys, group, size = 2.2) {
  const { g } = panel;
  HUES.forEach((hue, k) => {
    const [[a, b], ...others] = MARKS[k % 3];
    g.fillStyle = hue;
    g.beginPath();
    for (let i = 0; i < xs.length; i++) {
      if ((group ? group[i] : 0) !== k || !(Math.abs(xs[i]) + Math.abs(ys[i]) < 1e9)) continue;
      const x = panel.X(xs[i]), y = panel.Y(ys[i]);
      g.moveTo(x + size * a, y + size * b);
      for (const [c, d] of others) g.lineTo(x + size * c, y + size * d);
    }
    g.fill();
  });
}

const colour = (red, green, blue, alpha) => (alpha << 24 | blue << 16 | green << 8 | red) >>> 0;

// An image in a rectangle. `paint(pixels)` writes the colour of each pixel, from the top left.
function picture(g, columns, rows, paint, box, smooth) {
  picture.scratch ||= document.createElement("canvas");
  Object.assign(picture.scratch, { width: columns, height: rows });
  const inner = picture.scratch.getContext("2d"), image = inner.createImageData(columns, rows);
  paint(new Uint32Array(image.data.buffer));
  inner.putImageData(image, 0, 0);
  g.imageSmoothingEnabled = smooth;
  g.drawImage(picture.scratch, ...box);
}

// A chart (charts.py). The line with the name `thick` is wider.
function chart(g, box, { title, x, y, xticks, yticks, band, lines }, thick) {
  const panel = new Panel(g, box, x, y);
  panel.axes(xticks, yticks, title);
  if (band) {
    const [bottom, top] = band.map((v) => panel.Y(v));
    g.fillStyle = theme.grid;
    g.fillRect(panel.x, top, panel.w, bottom - top);
    label(g, "real data", panel.x + 6, bottom + 13, theme.soft); // below the band, where few lines are
  }
  lines.forEach(({ name, xs, ys, hue, dash, width, marks, legend }, k) => {
    panel.clipped(() => line(panel, xs, ys, HUES[hue], name === thick ? 3 : width, DASHES[dash]));
    if (marks) dots(panel, xs, ys, xs.map(() => hue), 4);
    if (!legend) return;
    const side = panel.x + panel.w - 118, up = panel.y + 14 + 17 * k;
    stroke(g, HUES[hue], 2.5, DASHES[dash], () => through(g, [[side, up - 4], [side + 26, up - 4]]));
    label(g, name, side + 32, up);
  });
  return panel;
}

// Say on the canvas itself why there is nothing to see, from the left end x and the top y, in a width.
function missing(g, [x, y, wide], text) {
  let row = "", up = y + 24;
  for (const word of [...text.split(" "), null]) {
    if (word === null || (row + word).length > wide / 7) {
      label(g, row, x + 8, up);
      row = "";
      up += 18;
    }
    row += `${word} `;
  }
  return [text];
}
