// Samples of pages that are not of the plane: pictures, signals and projected points.

// Samples of one frame of a block (frames, n, ...event) in a rectangle: pictures, signals or projected points.
function samples(g, { shape: [, n, ...event], values }, frame, [x, y, w, h], title = "", count = n) {
  const size = event.reduce((a, b) => a * b), start = frame * n * size, across = about.kind === "image" ? event[2] / event[1] : 2.5;
  label(g, title, x, y - 6);
  if (about.kind === "points") {
    const side = Math.min(w, h), panel = new Panel(g, [x, y, side, side], ...about.window), all = values.subarray(start, start + 2 * n);
    panel.axes(...about.window.map((ends) => ticks(...ends, 4)));
    return panel.clipped(() => dots(panel, all.filter((_, i) => i % 2 === 0), all.filter((_, i) => i % 2), null, 2));
  }
  const width = (columns) => Math.min(w / columns, h / Math.ceil(count / columns) * across);
  const columns = Array.from({ length: count }, (_, i) => i + 1).reduce((best, c) => (width(c) > width(best) ? c : best));
  const wide = width(columns), high = wide / across;
  for (let k = 0; k < count; k++) {
    const box = [x + (k % columns) * wide + 2, y + Math.floor(k / columns) * high + 2, wide - 4, high - 4];
    (about.kind === "image" ? drawPicture : drawSignal)(g, event, values.subarray(start + k * size, start + (k + 1) * size), box);
  }
}

function drawPicture(g, [channels, rows, columns], v, box) {
  const size = rows * columns, next = channels === 3 ? size : 0; // grey pictures show one channel three times
  picture(g, columns, rows, (pixels) => {
    for (let i = 0; i < size; i++) pixels[i] = colour(255 * v[i], 255 * v[i + next], 255 * v[i + 2 * next], 255);
  }, box, rows > 64);
}

function drawSignal(g, [channels, length], v, box) {
  const panel = new Panel(g, box, [0, length - 1], about.window[1]), places = Array.from({ length }, (_, i) => i);
  panel.axes([], []);
  panel.clipped(() => {
    for (let c = 0; c < channels; c++) line(panel, places, v.subarray(c * length, (c + 1) * length), HUES[c % 6], 1);
  });
}

function nearest(levels, logSnr) {
  const gaps = levels.map((level) => Math.abs(ratio(level) - ratio(logSnr)));
  return gaps.indexOf(Math.min(...gaps));
}
