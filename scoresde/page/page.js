// The page: its controls and their state in the address, and the loop that draws what has changed. No network, no storage.

const dirty = new Set(), visible = new Set(), playing = new Map(), times = [];
let waiting = 0, rest = 0, most = 0;

const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
const figureOf = (id) => id.split("-")[0];
const shown = () => Object.keys(figures).filter((name) => document.getElementById(name));
const canvasOf = (name) => document.querySelector(`#${name} canvas`);

function wake() {
  waiting ||= requestAnimationFrame(frame);
}

// Ask for figures to be drawn in the next frame.
function touch(...names) {
  names.forEach((name) => dirty.add(name));
  wake();
}

function register(input) {
  const [name, part] = input.id.split("-"), initial = input.defaultValue ?? input.options[0].value;
  controls.set(input.id, { input, initial, say: figures[name]?.say[part] });
  input.addEventListener("input", () => {
    pause(input.id);
    changed(input.id);
  });
}

// Say the value of a slider, to eyes and to screen readers.
function tell(id) {
  const { input, say } = controls.get(id);
  if (!say) return;
  const text = say(+input.value), output = document.querySelector(`output[for="${id}"]`);
  if (output.textContent === text) return;
  input.setAttribute("aria-valuetext", text);
  output.textContent = text;
}

function changed(id) {
  const names = id === "class" ? shown() : [figureOf(id)];
  for (const key of controls.keys()) if (names.includes(figureOf(key))) tell(key);
  touch(...names);
}

function set(id, next) {
  controls.get(id).input.value = next;
  changed(id);
}

// Clicks, drags and arrow keys on the canvas of a figure with a `box` move its sliders x and y.
function movable(name, { box, hover }) {
  const canvas = canvasOf(name), [across, up] = [`${name}-x`, `${name}-y`];
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  let held = false; // a drag that began in the box goes on outside
  const go = (event) => {
    const { left, top, width } = canvas.getBoundingClientRect(), [x, y, side] = box(width);
    const [a, b] = [(event.clientX - left - x) / side, (event.clientY - top - y) / side], inside = Math.max(a, 1 - a, b, 1 - b) <= 1;
    if (event.type === "pointerdown") held = inside;
    if (!inside && !(event.buttons && held)) return;
    set(across, Math.round(200 * a - 100));
    set(up, Math.round(100 - 200 * b));
  };
  canvas.addEventListener("pointerdown", go);
  canvas.addEventListener("pointermove", (event) => {
    if (event.buttons ? held : hover && event.pointerType === "mouse") go(event);
  });
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [across, -2], ArrowRight: [across, 2], ArrowDown: [up, -2], ArrowUp: [up, 2] }[event.key];
    if (!move) return;
    event.preventDefault();
    set(move[0], value(move[0]) + move[1]);
  });
}

function play(button) {
  const id = button.dataset.plays, { input } = controls.get(id);
  if (playing.has(id) || still()) return pause(id);
  if (+input.value >= +input.max) input.value = input.min;
  playing.set(id, { button, name: button.textContent, at: +input.value, then: null });
  button.textContent = "Pause";
  wake();
}

function pause(id) {
  if (playing.has(id)) playing.get(id).button.textContent = playing.get(id).name;
  playing.delete(id);
}

function advance(now) {
  for (const [id, play] of playing) {
    const { input: { value: at, min, max } } = controls.get(id);
    play.at = Math.min(+max, play.at + (max - min) * (play.then === null ? 0 : (now - play.then) / 8000));
    play.then = now;
    if (Math.round(play.at) !== +at) set(id, Math.round(play.at));
    if (play.at >= +max) pause(id);
  }
}

function frame(now) {
  const began = performance.now(), before = lived;
  waiting = 0;
  advance(now);
  // What is out of view is drawn once, one figure in a frame, and again when it comes into view.
  const first = [...dirty].find((name) => !figures[name].said);
  for (const name of [...dirty]) {
    if (!visible.has(name) && name !== first) continue;
    dirty.delete(name);
    draw(name);
  }
  most = Math.max(most, lived - before);
  times.push(performance.now() - began);
  if (times.length > 2000) times.shift();
  if (playing.size || [...dirty].some((name) => visible.has(name) || !figures[name].said)) wake();
  clearTimeout(rest);
  rest = setTimeout(settle, 250);
}

function draw(name) {
  const canvas = canvasOf(name), figure = figures[name], scale = Math.min(devicePixelRatio || 1, 2);
  const w = canvas.parentElement.clientWidth, h = figure.height(w), [wide, high] = [w, h].map((v) => Math.round(v * scale));
  if (!w) return;
  if (canvas.width !== wide || canvas.height !== high) Object.assign(canvas, { width: wide, height: high });
  const g = canvas.getContext("2d");
  g.setTransform(scale, 0, 0, scale, 0, 0);
  g.clearRect(0, 0, w, h);
  figure.said = figure.draw(g, w, h).filter(Boolean).join(" ");
  canvas.parentElement.querySelector("figcaption").textContent = figure.said;
}

// What waits until nothing moves: the spoken sentences and the address.
function settle() {
  for (const name of shown()) if (figures[name].said) canvasOf(name).setAttribute("aria-label", figures[name].said);
  const kept = [...controls].filter(([, { input, initial }]) => input.value !== initial);
  const hash = kept.map(([id, { input }]) => `${id}=${encodeURIComponent(input.value)}`).join("&");
  try {
    if (hash !== location.hash.slice(1)) history.replaceState(null, "", `#${hash}`);
  } catch { /* inside a frame without an address */ }
}

function readHash() {
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const [id, { input, initial }] of controls) {
    const next = asked.get(id) ?? initial, number = parseFloat(next);
    if (input.type === "range") input.value = Number.isFinite(number) ? number : initial;
    else input.value = [...input.options].some((option) => option.value === next) ? next : initial;
  }
  for (const id of controls.keys()) tell(id);
  touch(...shown());
}

function reset() {
  if (figures.compass) figures.compass.walkers = null;
  for (const [id, { initial }] of controls) {
    pause(id);
    set(id, initial);
  }
}

async function start() {
  data = await unpackAll(JSON.parse(document.getElementById("data").textContent));
  about = data.about;
  readTheme();
  document.querySelectorAll("input, select").forEach(register);
  document.documentElement.classList.add("script");
  const eye = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) visible[isIntersecting ? "add" : "delete"](target.id);
    wake();
  }, { rootMargin: "200px" });
  for (const name of shown()) {
    figures[name].setUp?.();
    if (figures[name].box) movable(name, figures[name]);
    eye.observe(document.getElementById(name));
  }
  for (const button of document.querySelectorAll(".play")) button.addEventListener("click", () => play(button));
  document.getElementById("reset").addEventListener("click", reset);
  addEventListener("hashchange", readHash);
  addEventListener("resize", () => touch(...shown()));
  addEventListener("beforeprint", () => shown().forEach(draw));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    readTheme();
    touch(...shown());
  });
  readHash();
}

// What tests ask: the state, the times of the last frames, and the most live points of a frame.
const page = {
  state: () => Object.fromEntries([...controls].map(([id, { input }]) => [id, input.value])),
  times,
  get most() { return most; },
};

start();
