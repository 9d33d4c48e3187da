// The figures of pictures, signals and projected points.

// Samples of one frame of a block (frames, n, ...event) in a rectangle: pictures, signals or projected points. Where the title is
// null, there is no room for ticks either.
function samples(g, { shape: [, n, ...event], values }, frame, [x, y, w, h], title = "", count = n) {
  const size = event.reduce((a, b) => a * b), start = frame * n * size, across = about.kind === "image" ? event[2] / event[1] : 2.5;
  label(g, title || "", x, y - 6);
  if (about.kind === "points") {
    const side = Math.min(w, h), panel = new Panel(g, [x, y, side, side], ...about.window), all = values.subarray(start, start + 2 * n);
    panel.axes(...about.window.map((ends) => (title === null ? [] : ticks(...ends, 4))));
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

Object.assign(figures.forward, {
  height: (w) => (about.kind === "points" ? squareHeight(w) : Math.round(0.8 * w)),
  show(g, w, h, { logSnr }) {
    const [x, y, wide] = squareBox(w);
    samples(g, data.forward.frames, nearest(data.forward.log_snr, logSnr), [x, y, wide, h - MARGIN.top - MARGIN.bottom]);
    return [about.shown];
  },
});

Object.assign(figures.reverse, {
  // How far a single step from a frame would end from the last one.
  gap({ states, estimates }, frame) {
    const size = states.values.length / states.shape[0], ends = states.values.subarray(-size), [low, high] = about.window[1];
    const far = estimates.values.subarray(frame * size, (frame + 1) * size).map((v, i) => v - ends[i]).filter(Number.isFinite);
    return `A single step from here would end ${percent(rootMean(far) / (high - low))} of the drawn range from the end of the path (root `
      + "mean square).";
  },
  height: (w) => Math.round((about.kind === "points" ? 0.62 : 1.1) * w),
  show(g, w, h, found, place, arrived) {
    const [x, y, wide] = squareBox(w), high = (h - 2 * y - 8) / 2, side = (wide - 20) / 2, beside = about.kind === "points";
    const [first, second] = beside ? [[x, y, side, side], [x + side + 34, y, side - 14, side - 14]]
      : [[x, y, wide, high], [x, 2 * y + high, wide, high]];
    samples(g, found.states, place, first, "the state");
    samples(g, found.estimates, place, second, "what the model sees in it");
    return [`${found.states.shape[1]} samples ${arrived ? "that have arrived" : "on their way"}.`, this.gap(found, place), about.shown];
  },
});

figures.schedules.show = (g, box, { logSnr }) => {
  const { log_snr, frames } = data.forward;
  samples(g, frames, nearest(log_snr, logSnr), box, null, about.kind === "points" ? frames.shape[1] : 1);
};

Object.assign(figures.solvers, {
  height: (w) => Math.round((narrow(w) ? 1.9 : 0.44) * w),
  show(g, box, title, ends, at) {
    if (at === null) label(g, title, box[0], box[1] - 6);
    else samples(g, ends, at, box, title);
  },
});
