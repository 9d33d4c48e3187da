// The model in the plane: the exact mixture, the network, the table of its estimates, and a step of a solver.

// Coordinates of n points. Always typed arrays, so that the engine compiles one version of each loop.
const room = (n) => [new Float64Array(n), new Float64Array(n)];

// The estimate of the data at z for an axis-parallel mixture of Gaussians (mixture.py).
function mixtureX0({ means, variances, weights }, z, logSnr) {
  const [c, s] = angle(logSnr), guesses = [];
  const logs = means.map((mean, k) => {
    let log = Math.log(weights[k]);
    guesses.push(mean.map((m, d) => {
      const v = variances[k][d], total = c * c * v + s * s, off = z[d] - c * m;
      log -= (off * off / total + Math.log(total)) / 2;
      return m + c * v * off / total;
    }));
    return log;
  });
  const most = Math.max(...logs), shares = logs.map((log) => Math.exp(log - most)), sum = shares.reduce((a, b) => a + b);
  return [0, 1].map((d) => shares.reduce((total, share, k) => total + share * guesses[k][d], 0) / sum);
}

// The density of the mixture at all pairs of xs and ys, row by row, up to a factor that is the same for all. The Gaussians
// are parallel to the axes, so each is a product of a factor for x and one for y.
function mixtureDensity({ means, variances, weights }, xs, ys, logSnr) {
  const [c, s] = angle(logSnr), out = new Float64Array(xs.length * ys.length);
  means.forEach((mean, k) => {
    const [across, up] = [xs, ys].map((places, d) => {
      const total = c * c * variances[k][d] + s * s;
      return places.map((z) => Math.exp(-((z - c * mean[d]) ** 2) / total / 2) / Math.sqrt(total));
    });
    for (let j = 0, at = 0; j < ys.length; j++) {
      for (let i = 0; i < xs.length; i++) out[at++] += weights[k] * up[j] * across[i];
    }
  });
  return out;
}

// How many hills n x n values have: tops above 5 % of the highest, from which the way to a higher top falls by more than 10 %.
function hills(n, values) {
  const most = values.reduce((a, b) => Math.max(a, b)), up = new Int32Array(n * n).fill(-1); // towards a higher top
  const order = [...values.keys()].filter((k) => values[k] > 0.05 * most).sort((a, b) => values[b] - values[a]);
  const top = (k) => { while (up[k] !== k) k = up[k]; return k; };
  let small = 0;
  for (const k of order) { // from the highest down
    up[k] = k;
    for (let y = -1; y <= 1; y++) for (let x = -1; x <= 1; x++) {
      const other = k + y * n + x, inside = k % n + x >= 0 && k % n + x < n;
      if (!inside || !(up[other] >= 0)) continue;
      const a = top(other), b = top(k), low = values[a] < values[b] ? a : b;
      if (a === b) continue;
      if (values[k] >= 0.9 * values[low]) small++; // the lower one does not stand out
      up[low] = a + b - low;
    }
  }
  return order.length - small;
}

const silu = (x) => x * sigmoid(x);

// W x + b for a layer of a network; W has the shape (out, in).
function linear(weights, name, x) {
  const { shape: [rows, columns], values: w } = weights[`${name}.weight`], out = weights[`${name}.bias`].values.slice();
  for (let i = 0, at = 0; i < rows; i++) {
    let p = 0, q = 0, r = 0, t = 0, j = 0; // four sums, which do not wait for each other
    for (; j + 3 < columns; j += 4, at += 4) {
      p += w[at] * x[j];
      q += w[at + 1] * x[j + 1];
      r += w[at + 2] * x[j + 2];
      t += w[at + 3] * x[j + 3];
    }
    for (; j < columns; j++, at++) p += w[at] * x[j];
    out[i] += p + q + r + t;
  }
  return out;
}

function normalised(weights, name, x) {
  const g = weights[`${name}.weight`].values, b = weights[`${name}.bias`].values;
  const mean = x.reduce((sum, v) => sum + v, 0) / x.length;
  const size = Math.sqrt(x.reduce((sum, v) => sum + (v - mean) ** 2, 0) / x.length + 1e-5);
  return x.map((v, i) => (v - mean) / size * g[i] + b[i]);
}

// The value of a curve over the log-SNR, by the cubic through four points.
function curve({ shape: [, count], values }, row, share) {
  const at = share * (count - 1), i = clamp(Math.floor(at), 1, count - 3), f = at - i;
  const [a, b, c, d] = values.subarray(row * count + i - 1, row * count + i + 3);
  return a * -f * (f - 1) * (f - 2) / 6 + b * (f + 1) * (f - 1) * (f - 2) / 2
    + c * -(f + 1) * f * (f - 2) / 2 + d * (f + 1) * f * (f - 1) / 6;
}

// What a network makes of the noise level and the class alone: its curves, and the scale and shift of each block. The last
// answer is kept, because several points often share a level.
function embedded(net, about, logSnr, label) {
  if (net.kept?.logSnr === logSnr && net.kept.label === label) return net.kept;
  const w = net.weights, share = (logSnr - about.low) / (about.high - about.low);
  const [told, kin, kz, kf] = [0, 1, 2, 3].map((row) => curve(net.curves, row, share));
  const angles = [...net.frequencies.values].map((f) => f * told);
  let features = Float64Array.from([...angles.map(Math.sin), ...angles.map(Math.cos)], (v) => Math.SQRT2 * v);
  if (net.classes && label !== null) {
    const rows = w["embedding.classes.weight"].values, n = features.length;
    features = features.map((v, i) => v + rows[label * n + i]);
  }
  const c = linear(w, "embedding.mlp.2", linear(w, "embedding.mlp.0", features).map(silu)).map(silu);
  const blocks = Array.from({ length: net.blocks }, (_, k) => linear(w, `blocks.${k}.modulate`, c));
  net.kept = { logSnr, label, kin, kz, kf, blocks };
  return net.kept;
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
  return [0, 1].map((d) => kz * z[d] + kf * f[d]);
}

// The estimates of a table (table.py) at n points with coordinates xs and ys, into `out`.
function tableX0({ values: { shape: [, levels, size], values: v }, half, low, high }, xs, ys, logSnr, out = room(xs.length)) {
  const plane = size * size, scale = (size - 1) / (2 * half), last = size - 1;
  const height = clamp((logSnr - low) / (high - low) * (levels - 1), 0, levels - 1);
  const l = Math.min(Math.floor(height), levels - 2), above = height - l;
  for (let n = 0; n < xs.length; n++) {
    const x = clamp((xs[n] + half) * scale, 0, last), y = clamp((ys[n] + half) * scale, 0, last);
    const i = Math.min(Math.floor(x), last - 1), j = Math.min(Math.floor(y), last - 1), xf = x - i, yf = y - j;
    const p = (1 - xf) * (1 - yf), q = xf * (1 - yf), r = (1 - xf) * yf, t = xf * yf;
    for (let d = 0; d < 2; d++) {
      const a = (d * levels + l) * plane + j * size + i, b = a + size, e = a + plane, f = e + size;
      const found = (1 - above) * (p * v[a] + q * v[a + 1] + r * v[b] + t * v[b + 1])
        + above * (p * v[e] + q * v[e + 1] + r * v[f] + t * v[f + 1]);
      out[d][n] = found === found ? found : beside([a, a + 1, b, b + 1, e, e + 1, f, f + 1], [p, q, r, t], above, v);
    }
  }
  return out;
}

// The same sum where a corner is a hole, which counts only if it has weight.
function beside(corners, weights, above, v) {
  return corners.reduce((sum, at, k) => {
    const weight = weights[k % 4] * (k < 4 ? 1 - above : above);
    return weight ? sum + weight * v[at] : sum;
  }, 0);
}

// A DDIM step from one log-SNR to the next, with the noise of ancestral sampling for eta = 1 (solvers/stochastic.py):
// z' = c' x0 + sqrt(s'^2 - n^2) eps + n noise,  n = eta sqrt(s^2 - (c/c')^2 s'^2) s'/s,  eps = (z - c x0)/s.
// The answer has the factors of z, x0 and noise.
function stepper(from, to, eta) {
  const [c, s] = angle(from), [c1, s1] = angle(to);
  const n = eta * Math.sqrt(Math.max(0, s * s - (c / c1) ** 2 * s1 * s1)) * s1 / s;
  const kept = Math.sqrt(Math.max(0, s1 * s1 - n * n)) / s;
  return [kept, c1 - kept * c, n];
}

// Turn an arrow in the plane so that its cosine to what it was is `accuracy`, to the left or to the right.
function turned([x, y], accuracy, side) {
  const across = side * Math.sqrt(Math.max(0, 1 - accuracy * accuracy));
  return [accuracy * x - across * y, accuracy * y + across * x];
}

const cosine = (a, b) => (a[0] * b[0] + a[1] * b[1]) / (Math.hypot(...a) * Math.hypot(...b));

// Standard normal numbers from a seed (mulberry32 and Box-Muller).
function normals(seed, count) {
  let state = seed * 2654435761 + 1 | 0;
  const uniform = () => {
    state = state + 0x6D2B79F5 | 0;
    let t = Math.imul(state ^ state >>> 15, 1 | state);
    t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t;
    return ((t ^ t >>> 14) >>> 0) / 4294967296;
  };
  const normal = () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  return Float64Array.from({ length: count }, normal);
}
