// The figures of the photos, their heatmaps with values, and the mean heatmaps of the classes.

const FIGURES = DATA.columns;
const COUNT = FIGURES.name.length;
const placeOf = new Map(FIGURES.name.map((name, i) => [name, i]));

/** Whether a photo is shown with its heatmaps: those are the first. */
const isShown = (i) => i < DATA.photos.length;
const isWrong = (i) => DATA.labelled && FIGURES.true[i] !== FIGURES.predicted[i];
/** Whether the page has a picture of a photo, with heatmaps or without. */
const isPictured = (i) => isShown(i) || i in DATA.small;
/** A probability; of what is nearly none or sure, on which side it lies. */
const likelihood = (share) => (share > 0 && share < 0.0005 ? "< 0.1 %" : share < 1 && share > 0.9995 ? "> 99.9 %" : chance(share));
const photoAddress = (i) => `#photo=${encodeURIComponent(FIGURES.name[i])}`;

/** A heatmap with its raw values: of the predicted or the true class, or the first minus the second; null where there is none. */
async function heatOf(i, kind) {
  const { maps, size, low, high } = DATA.photos[i];
  const [h, w] = size, levels = await mapsOf(maps, size);
  const valuesOf = (n) => Float32Array.from(levels[n], (level) => low[n] + (level / 255) * (high[n] - low[n]));
  if (kind === "difference") {
    if (levels.length < 2) return null;
    const other = valuesOf(1);
    return { values: valuesOf(0).map((value, at) => value - other[at]), w, h, signed: true };
  }
  const n = kind === "true" ? levels.length - 1 : 0;
  return { values: valuesOf(n), w, h, signed: low[n] < 0 };
}

/** The strongest value of a map, of either sign. */
const peakOf = ({ values }) => values.reduce((peak, value) => Math.max(peak, Math.abs(value)), 0);

/** A heatmap as coloured pixels of a size; the colours stand for 0 to `peak`, or with a sign for -peak to peak. */
function coloured(heat, width, height, palette, peak) {
  const canvas = document.createElement("canvas"), large = enlarged(heat.values, heat.w, heat.h, width, height);
  const scale = peak > 0 ? 1 / peak : 0;
  if (!heat.signed) return paint(canvas, large.map((value) => 255 * scale * value), width, height, palette, true);
  paint(canvas, large.map((value) => 127.5 + 127.5 * scale * value), width, height, "seismic");
  const context = canvas.getContext("2d"), pixels = context.getImageData(0, 0, width, height);
  for (let at = 0; at < large.length; at++) pixels.data[4 * at + 3] = Math.min(255, 459 * scale * Math.abs(large[at]));
  context.putImageData(pixels, 0, 0);
  return canvas;
}

/** Draw a photo with one of its heatmaps, on its own scale unless a `peak` is given; gives the heatmap and its peak. */
async function drawHeat(canvas, i, kind, { palette = "jet", peak = null, opacity = 0.7, side = 480 } = {}) {
  const heat = kind === "none" ? null : await heatOf(i, kind);
  const top = heat && (peak ?? peakOf(heat));
  await drawOverlay(canvas, i, heat && ((part) => coloured(heat, part.width, part.height, palette, top)), opacity, side);
  return heat && { heat, peak: top };
}

/** Draw the mean heatmap of a class; the region of its caution is outlined where the network sees all of every photo. */
async function drawMean(canvas, index, region) {
  const { block, classes, side } = DATA.means, size = 120;
  const values = (await mapsOf(block, [side, side]))[classes.indexOf(index)];
  paint(canvas, enlarged(values, side, side, size, size), size, size, "inferno");
  if (!region || !DATA.whole) return;
  const [first, second] = region.split(" "), part = region.endsWith("corner") ? size / 5 : size / 10;
  const wide = ["top", "bottom"].includes(first) && second === "edge";
  const tall = ["left", "right"].includes(first);
  const x = first === "right" || second === "right" ? size - part : 0, y = first === "bottom" ? size - part : 0;
  const context = canvas.getContext("2d");
  context.strokeStyle = "#fff";
  context.setLineDash([5, 3]);
  context.lineWidth = 2;
  context.strokeRect(x + 1, y + 1, (wide ? size : part) - 2, (tall ? size : part) - 2);
}

/** A canvas with a photo and a heatmap over it, which vanishes while the pointer of a mouse is there. */
function heatedCanvas(i, kind, attributes, options) {
  const draw = (shown) => drawHeat(canvas, i, shown, options);
  const under = (shown) => ({ pointerType }) => { if (pointerType === "mouse") track(draw(shown)); };
  const canvas = make("canvas", { width: 4, height: 3, ...attributes, onpointerenter: under("none"), onpointerleave: under(kind) });
  return lazily(canvas, () => draw(kind));
}

const drawings = new WeakMap();
const near = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) if (isIntersecting) drawNow(target);
}, { rootMargin: "500px" });

function drawNow(canvas) {
  near.unobserve(canvas);
  const draw = drawings.get(canvas);
  drawings.delete(canvas);
  if (draw) track(draw());
}

/** Draw a canvas when it comes near the window, or before a print. */
function lazily(canvas, draw) {
  drawings.set(canvas, draw);
  near.observe(canvas);
  return canvas;
}

window.addEventListener("beforeprint", () => {
  for (const canvas of document.querySelectorAll("canvas")) if (drawings.has(canvas)) drawNow(canvas);
});
