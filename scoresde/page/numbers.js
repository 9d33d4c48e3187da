// Numbers: packed arrays and the frame of frame.py. Node runs this file and model.js, where the tests compare them with the package.
"use strict";

// Half precision: a sign, 5 bits of exponent and 10 bits of fraction.
function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = (bits & 1023) / 1024;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
}

const STORED = { steps: Int16Array, half: Uint16Array, single: Float32Array, bytes: Uint8Array };

// The numbers of a packed array (data.py), as {shape, values}.
async function unpack({ kind, shape, step, text }) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer());
  const width = STORED[kind].BYTES_PER_ELEMENT, count = planes.length / width, last = shape.at(-1) || 1;
  const whole = new STORED[kind](planes.map((_, i) => planes[(i % width) * count + Math.floor(i / width)]).buffer);
  const values = Float64Array.from(whole, kind === "half" ? half : (v) => v * step);
  for (let i = 0; i < count && kind === "steps"; i++) {
    if (i % last) whole[i] += whole[i - 1]; // differences, which wrap around in 16 bits
    values[i] = whole[i] === -32768 ? NaN : whole[i] * step;
  }
  return { shape, values };
}

// Unpack every packed array inside a value.
async function unpackAll(value) {
  if (Array.isArray(value)) return Promise.all(value.map(unpackAll));
  if (value === null || typeof value !== "object") return value;
  if (typeof value.text === "string" && Array.isArray(value.shape)) return unpack(value);
  const parts = Object.entries(value).map(async ([key, part]) => [key, await unpackAll(part)]);
  return Object.fromEntries(await Promise.all(parts));
}

const sigmoid = (x) => 1 / (1 + Math.exp(-x));
const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

// z = c x_0 + s eps at a log-SNR.
const angle = (logSnr) => [Math.sqrt(sigmoid(logSnr)), Math.sqrt(sigmoid(-logSnr))];

// r = s/(c + s), in which sliders move, and back.
const ratio = (logSnr) => sigmoid(-logSnr / 2);
const logSnrOf = (r) => 2 * (Math.log1p(-r) - Math.log(r));

let lived = 0; // evaluations of the network
