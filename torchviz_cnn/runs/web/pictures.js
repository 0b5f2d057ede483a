// Pictures and maps: they are text in the page until they are needed, then decoded and coloured here.

const DATA = JSON.parse(document.getElementById("data").textContent);
const PALETTES = Object.fromEntries(Object.entries(DATA.palettes).map(([name, hex]) =>
  [name, Uint8Array.from({ length: 768 }, (_, i) => parseInt(hex.slice(2 * i, 2 * i + 2), 16))]));

const blockText = (id) => document.getElementById(`block-${id}`).textContent;
const pictureUrl = (id) => `data:image/webp;base64,${blockText(id)}`;

const decodedMaps = new Map();

/** Grey maps of a block: a promise of one Uint8Array of height x width values each. */
function mapsOf(id, [height, width]) {
  if (!decodedMaps.has(id)) decodedMaps.set(id, inflate(blockText(id)).then((steps) => {
    const size = height * width;
    for (let row = 0; row < steps.length; row += width)
      for (let i = row + 1; i < row + width; i++) steps[i] = (steps[i] + steps[i - 1]) & 255;
    return Array.from({ length: steps.length / size }, (_, n) => steps.subarray(n * size, (n + 1) * size));
  }));
  return decodedMaps.get(id);
}

async function inflate(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const loadedPhotos = new Map();

/** A photo as a decoded image: a promise. */
function photoImage(index) {
  if (!loadedPhotos.has(index)) {
    const image = new Image();
    image.src = pictureUrl(DATA.photos[index].picture);
    loadedPhotos.set(index, image.decode().then(() => image));
  }
  return loadedPhotos.get(index);
}

/** A map (w x h) interpolated linearly at W x H places, its edge values continued. */
function enlarged(values, w, h, W, H) {
  const large = new Float32Array(W * H);
  const columns = Array.from({ length: W }, (_, x) => between(((x + 0.5) * w) / W - 0.5, w));
  for (let y = 0; y < H; y++) {
    const [top, bottom, down] = between(((y + 0.5) * h) / H - 0.5, h);
    for (let x = 0; x < W; x++) {
      const [left, right, across] = columns[x];
      const above = values[top * w + left] * (1 - across) + values[top * w + right] * across;
      const below = values[bottom * w + left] * (1 - across) + values[bottom * w + right] * across;
      large[y * W + x] = above * (1 - down) + below * down;
    }
  }
  return large;
}

function between(place, count) {
  const at = Math.min(Math.max(place, 0), count - 1);
  const low = Math.floor(at);
  return [low, Math.min(low + 1, count - 1), at - low];
}

/** Values of 0..255 as coloured pixels on a canvas of their own size; `clear`: the weaker, the more transparent. */
function paint(canvas, values, width, height, palette, clear = false) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  const colours = PALETTES[palette];
  for (let i = 0; i < values.length; i++) {
    const value = Math.min(255, Math.max(0, values[i]));
    const level = 3 * Math.floor(value);
    pixels.data[4 * i] = colours[level];
    pixels.data[4 * i + 1] = colours[level + 1];
    pixels.data[4 * i + 2] = colours[level + 2];
    pixels.data[4 * i + 3] = clear ? Math.min(255, 1.8 * value) : 255;
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

/** A colour bar: the palette from its lowest to its highest value, with these two and what they are. */
function colourBar(palette, low, high, meaning, clear = false) {
  const ramp = paint(make("canvas", { "aria-hidden": "true" }), Float32Array.from({ length: 256 }, (_, i) => i), 256, 1, palette, clear);
  return make("span", { class: "colour-bar" }, make("span", { class: "number" }, low), ramp, make("span", { class: "number" }, high), make("span", {}, meaning));
}

/** The part of a picture of a photo that is the network's input, in whole pixels. */
function viewOf(photo, width, height) {
  const [left, top, right, bottom] = photo.view;
  const x = Math.round(left * width), y = Math.round(top * height);
  return { x, y, width: Math.max(1, Math.round(right * width) - x), height: Math.max(1, Math.round(bottom * height) - y) };
}

/** Draw a photo with a coloured map over the part that is the network's input. */
async function drawOverlay(canvas, index, map, opacity, side = 640) {
  const photo = DATA.photos[index];
  const image = await photoImage(index);
  const scale = Math.min(1, side / Math.max(photo.width, photo.height));
  const width = Math.max(1, Math.round(photo.width * scale)), height = Math.max(1, Math.round(photo.height * scale));
  const part = viewOf(photo, width, height);
  const coloured = map?.(part);
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, width, height);
  if (coloured) {
    context.globalAlpha = opacity;
    context.drawImage(coloured, part.x, part.y);
  }
  dimBorder(context, part, width, height);
}

/** Draw the part of a photo that is the network's input, with a coloured map over it. */
async function drawView(canvas, index, map, opacity, side = 360) {
  const photo = DATA.photos[index], image = await photoImage(index);
  const [left, top, right, bottom] = photo.view;
  const scale = side / Math.max((right - left) * photo.width, (bottom - top) * photo.height);
  const width = photo.width * scale, height = photo.height * scale;
  canvas.width = Math.max(1, Math.round((right - left) * width));
  canvas.height = Math.max(1, Math.round((bottom - top) * height));
  const context = canvas.getContext("2d");
  context.drawImage(image, -left * width, -top * height, width, height);
  context.globalAlpha = opacity;
  context.drawImage(map(canvas), 0, 0);
}

/** Whether a part is the whole picture, give or take a pixel. */
const coversAll = (part, width, height) => part.x <= 1 && part.y <= 1 && part.x + part.width >= width - 1 && part.y + part.height >= height - 1;

/** Dim the part of a photo that is not the network's input. */
function dimBorder(context, part, width, height) {
  if (coversAll(part, width, height)) return;
  context.globalAlpha = 0.42;
  context.fillStyle = "#14161a";
  context.beginPath();
  context.rect(0, 0, width, height);
  context.rect(part.x, part.y, part.width, part.height);
  context.fill("evenodd");
  context.globalAlpha = 1;
}

/** Mean and standard deviation of all values of some maps. */
function spread(all) {
  let sum = 0, squares = 0, count = 0;
  for (const one of all) {
    for (const v of one) { sum += v; squares += v * v; }
    count += one.length;
  }
  const mean = sum / count;
  return { mean, deviation: Math.sqrt(Math.max(0, squares / count - mean * mean)) };
}

/** As the textbook draws activations: minus their mean, over their deviation, x 64 + 128, both those of all the maps in `all`.
 * A constant map is 0. */
function standardised(levels, all = [levels]) {
  const { mean, deviation } = spread(all);
  return deviation < 1e-6 ? new Float32Array(levels.length) : Float32Array.from(levels, (v) => ((v - mean) / deviation) * 64 + 128);
}

let pending = 0;
document.documentElement.dataset.pending = "0";

/** Count work until it is done: the page says in `data-pending` how much is going on. */
function track(work) {
  const tell = (step) => {
    pending += step;
    document.documentElement.dataset.pending = String(pending);
  };
  tell(1);
  return work.finally(() => tell(-1));
}

/** Make an element with attributes, listeners (`onclick`) and children; texts stay texts. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** A name inside a sentence; the direction of its letters does not change that of the sentence. */
const named = (name) => make("bdi", {}, name);

const byId = (id) => document.getElementById(id);
const className = (index) => DATA.classes[index];
const percent = (share) => (share === null ? "–" : `${(100 * share).toFixed(share && (share < 0.0995 || (share > 0.995 && share < 1)) ? 1 : 0)} %`);
const chance = (share) => (share === null ? "–" : `${(100 * share).toFixed(1)} %`);
const explainedNumber = (value) => (DATA.scores ? number(value) : chance(value));
const number = (value) => {
  if (value === null) return "not finite";
  const size = Math.abs(value);
  return size && (size < 0.001 || size >= 1e6) ? value.toExponential(1) : String(Number(value.toPrecision(3)));
};
