// The state of the page (photo, class, method, layer, colormap), and the heatmap over the photo.

const state = { photo: 0, rank: 0, method: null, layer: null, opacity: 0.7, colours: "jet", show: "activations", order: "number" };
const heated = DATA.layers.filter((layer) => Object.keys(layer.heat).length > 0); // in the order of running
const listeners = [];

/** Change the state, and call what depends on it. */
function change(changes) {
  Object.assign(state, changes);
  const photo = DATA.photos[state.photo];
  if (photo) state.rank = Math.min(state.rank, photo.classes.length - 1);
  for (const listener of listeners) listener(changes);
}

const currentPhoto = () => DATA.photos[state.photo];
const currentMethod = () => DATA.methods.find((method) => method.name === state.method);
const currentClass = () => className(currentPhoto().classes[state.rank]);

/** Radio buttons that look like chips. `options`: [value, label, picture]. */
function chips(place, name, options, value, choose, look) {
  place.replaceChildren(...options.map(([key, label, inside]) => {
    const id = `${name}-${key}`;
    const input = make("input", { type: "radio", name, id, value: key, onchange: () => choose(key) });
    input.checked = String(key) === String(value);
    return make("span", { class: look ?? "chip" }, input, make("label", { for: id }, inside ?? null, make("span", {}, ...breakable(label))));
  }));
}

/** A name that may go to the next line behind each of its dots. */
const breakable = (name) => String(name).split(/(?<=\.)/).flatMap((part, i) => (i ? [make("wbr"), part] : [part]));

function check(name, value) {
  const input = byId(`${name}-${value}`);
  if (input) input.checked = true;
}

function setUpStage() {
  if (!DATA.photos.length) return;
  state.layer = (heated.find((layer) => layer.name === DATA.explained) ?? heated.at(-1))?.name ?? null;
  const methods = DATA.methods.map(({ name, title }) => [name, title]);
  state.method = DATA.methods[0]?.name ?? null;
  chips(byId("method-switch"), "method", methods, state.method, chooseMethod);
  for (const { name, suits } of DATA.methods) if (suits) byId(`method-${name}`).nextSibling.append(" ", make("small", {}, suits));
  chips(byId("colour-switch"), "colours", Object.keys(PALETTES).map((name) => [name, name]), state.colours, (colours) => change({ colours }));
  chips(byId("photo-switch"), "photo", DATA.photos.map((photo, i) => [i, photo.name, make("img", { "data-block": photo.picture, alt: "" })]),
    0, (photo) => change({ photo }), "thumb");
  const strip = heated.map((layer, i) => [i, layer.name, make("canvas", { "aria-hidden": "true" })]);
  chips(byId("depth-switch"), "depth", strip, heated.findIndex((layer) => layer.name === state.layer),
    (i) => change({ layer: heated[i].name }), "depth-chip");
  byId("depth-field").hidden = !heated.length;
  for (const button of document.querySelectorAll(".pick")) button.addEventListener("click", () => change({ photo: Number(button.dataset.photo) }));
  const slider = byId("opacity");
  slider.addEventListener("input", () => {
    byId("opacity-value").textContent = `${slider.value} %`;
    change({ opacity: slider.value / 100 });
  });
  listeners.push((changes) => {
    if ("photo" in changes) showPhoto();
    if (["photo", "rank", "method", "colours"].some((key) => key in changes)) track(drawStrip());
    if (["photo", "rank", "method", "layer", "opacity", "colours"].some((key) => key in changes)) track(drawHeatmap());
    if ("layer" in changes) chooseLayer();
    if ("photo" in changes || "rank" in changes) showPixels();
  });
  if (!methods.length) byId("heatmap-caption").textContent = "No gradient comes back to any layer, nor to the input.";
}

/** Set the size of pictures before they are drawn, so that nothing on the page moves then. */
function reserve() {
  const { width, height, pixels } = currentPhoto();
  Object.assign(byId("heatmap"), { width, height });
  const [h, w] = (Object.values(pixels)[0] ?? { size: [1, 1] }).size;
  byId("pixels").style.setProperty("--shape", `${w} / ${h}`);
}

/** Choose a method and, where the layer that is shown has no heatmap by it, the layer that has. */
function chooseMethod(method) {
  const { heat } = DATA.methods.find(({ name }) => name === method);
  const has = (layer) => !heat || heat in layer.heat;
  const there = heated.some((layer) => layer.name === state.layer && has(layer));
  change({ method, ...(there || !heat ? {} : { layer: heated.findLast(has).name }) });
}

function chooseLayer() {
  const i = heated.findIndex((layer) => layer.name === state.layer);
  check("depth", i);
  const chip = byId(`depth-${i}`)?.parentElement, strip = byId("depth-switch");
  if (chip) strip.scrollLeft = chip.offsetLeft - strip.offsetLeft - (strip.clientWidth - chip.clientWidth) / 2;
}

function showPhoto() {
  const photo = currentPhoto();
  if (byId("heatmap").width !== photo.width || byId("heatmap").height !== photo.height) reserve();
  check("photo", state.photo);
  byId("dimmed").hidden = coversAll(viewOf(photo, photo.width, photo.height), photo.width, photo.height);
  for (const card of document.querySelectorAll(".card")) {
    const chosen = Number(card.dataset.photo) === state.photo;
    card.classList.toggle("chosen", chosen);
    card.querySelector(".pick").setAttribute("aria-pressed", String(chosen));
  }
  const options = photo.classes.map((c, rank) => [rank, `${className(c)} `, null]);
  chips(byId("class-switch"), "class", options, state.rank, (rank) => change({ rank: Number(rank) }));
  for (const rank of photo.classes.keys()) byId(`class-${rank}`).nextSibling.append(make("small", {}, explainedNumber(photo.probabilities[rank])));
}

/** The heatmap of a method at a layer for a photo and one of its classes: a promise of values 0..255, empty or not. */
async function heatOf(layer, method, photo, rank) {
  const heat = layer.heat[method];
  const values = (await mapsOf(heat.maps[photo], heat.size))[rank];
  return { values, h: heat.size[0], w: heat.size[1], at: layer.name, call: layer.call, peak: heat.peak[photo][rank], empty: heat.empty[photo][rank] };
}

/** The absolute gradients at the input by a method, as `heatOf` gives heatmaps. */
async function pixelsOf(method, photo, rank) {
  const pixels = DATA.photos[photo].pixels[method];
  const values = (await mapsOf(pixels.maps, pixels.size))[rank];
  return { values, h: pixels.size[0], w: pixels.size[1], at: null, peak: pixels.peaks[rank], empty: pixels.empty[rank] };
}

/** The product of a heatmap and the gradients at the input, which have more pixels, on a scale of its own. */
function product(heat, pixels) {
  const wide = enlarged(heat.values, heat.w, heat.h, pixels.w, pixels.h);
  const values = wide.map((value, i) => value * pixels.values[i]);
  const peak = values.reduce((a, b) => Math.max(a, b), 0);
  return { ...pixels, values: peak ? values.map((value) => (255 * value) / peak) : values, at: heat.at, call: heat.call, peak: null, empty: heat.empty || !peak };
}

/** The map of the chosen method for the chosen photo, class and layer. */
async function attribution() {
  const { heat, pixels } = currentMethod(), { photo, rank } = state;
  if (!heat) return pixelsOf(pixels, photo, rank);
  const map = await heatOf(heated.find((layer) => layer.name === state.layer), heat, photo, rank);
  return pixels ? product(map, await pixelsOf(pixels, photo, rank)) : map;
}

/** Where a heatmap is: the layer and, where another module gives its activation, that too. */
const layerOf = ({ at, call }) => (call === at ? [named(at)] : [named(at), " (output of ", named(call), ")"]);

/** What a method shows, and what it does not. */
const helpOf = ({ title, shows, misses }) => `${title} shows ${shows}.${misses ? ` It does not show ${misses}.` : ""}`;

/** What misleads in the maps of a method on this network; nothing of most. */
const cautionOf = ({ pixels, heat }) => (pixels === "deconvnet" && !heat && DATA.pooled
  ? "Caution: global average pooling comes before the score of this network, so that the deconvnet starts with the same signal at every place. What its picture shows comes from the network's strides and from edges of the whole photo, not from evidence for the class." : "");

const drawnHeatmap = { key: null, canvas: null, request: null };

async function drawHeatmap() {
  const method = currentMethod();
  if (!method) return drawOverlay(byId("heatmap"), state.photo, null, 1);
  const key = [state.photo, state.rank, state.method, state.layer, state.colours].join("\n");
  const request = {};
  drawnHeatmap.request = request;
  const [map] = await Promise.all([attribution(), photoImage(state.photo)]);
  if (request !== drawnHeatmap.request) return;
  const overlay = (part) => {
    if (drawnHeatmap.key !== key) {
      const values = enlarged(map.values, map.w, map.h, part.width, part.height);
      drawnHeatmap.canvas = paint(document.createElement("canvas"), values, part.width, part.height, state.colours, true);
      drawnHeatmap.key = key;
    }
    return drawnHeatmap.canvas;
  };
  await drawOverlay(byId("heatmap"), state.photo, overlay, state.opacity);
  const photo = currentPhoto();
  const caption = [method.title, ...(map.at ? [" at ", ...layerOf(map)] : []), " for ", named(currentClass()), ` (${explainedNumber(photo.probabilities[state.rank])})`];
  const label = caption.map((part) => part.textContent ?? part).join("");
  byId("heatmap-caption").replaceChildren(...caption, map.empty ? ": it shows no evidence for this class." : "");
  byId("heatmap").setAttribute("aria-label", `${label}, over the photo ${photo.name}${map.empty ? ": no evidence" : ""}`);
  const alone = method.heat && !heated.every((layer) => method.heat in layer.heat) ? " It is made for this layer alone." : "";
  byId("method-shows").textContent = `${helpOf(method)}${alone}`;
  byId("heatmap-caution").textContent = cautionOf(method);
  const top = map.peak === null ? "strongest" : number(map.peak);
  byId("heatmap-legend").replaceChildren(...(map.empty ? [] : [colourBar(state.colours, "0", top, "value of this map; the colours fade towards 0", true)]));
  byId("heatmap-figures").replaceChildren(...trustOf(method, photo.figures, map));
}

/** How far the map can be believed, in words: what was measured of it on this photo, and of its method with random weights. */
function trustOf(method, figures, map) {
  const words = [], mine = figures[method.name]?.[state.rank], blob = figures.centre?.[state.rank];
  if (method.heat && map.at !== DATA.explained) words.push("How far a heatmap can be believed was measured at ", named(DATA.explained), " alone. ");
  else if (mine && !map.empty) {
    words.push(`Measured on this photo: insertion ${mine.insertion.toFixed(2)} (higher is better), deletion ${mine.deletion.toFixed(2)} (lower is better)`);
    if (blob) words.push(`; a blob in the centre has ${blob.insertion.toFixed(2)} and ${blob.deletion.toFixed(2)}`);
    if (mine.share !== undefined) words.push(`; ${percent(mine.share)} of its evidence lies on the object`);
    words.push(". ");
    if (blob && mine.insertion - mine.deletion <= blob.insertion - blob.deletion) words.push("The blob does as well: this map does not say where the evidence is. ");
  } else if (!map.empty) words.push("There was no time to measure how far this map can be believed. ");
  const kept = DATA.kept[method.name];
  if (kept !== undefined) words.push(`Its maps keep ${Math.max(kept, 0).toFixed(2)} of their structure while the network's weights become random${kept >= DATA.edges ? ": they show edges rather than evidence" : ""}.`);
  return words;
}

/** Lay over each photo among the predictions the heatmap of the class that is explained first. */
async function drawCards() {
  const layer = heated.find(({ name }) => name === DATA.explained), method = stripMethod();
  if (!layer || !method) return;
  byId("coloured").hidden = false;
  for (const card of document.querySelectorAll(".card")) {
    const photo = Number(card.dataset.photo), canvas = card.querySelector("canvas");
    const { values, w, h } = await heatOf(layer, method, photo, 0);
    const overlay = ({ width, height }) => paint(document.createElement("canvas"), enlarged(values, w, h, width, height), width, height, "jet", true);
    await drawOverlay(canvas, photo, overlay, state.opacity);
    canvas.hidden = false;
  }
}

/** The heatmaps of the strip: those of the chosen method or, where that has none, of the first one that has. */
const stripMethod = () => currentMethod()?.heat ?? DATA.methods.find((method) => method.heat)?.heat;

async function drawStrip() {
  const { rank, photo } = state, method = stripMethod();
  const canvasOf = (i) => byId(`depth-${i}`).nextSibling.querySelector("canvas");
  for (const [i, layer] of heated.entries()) {
    byId(`depth-${i}`).disabled = !(method in layer.heat);
    if (!(method in layer.heat)) canvasOf(i).width = 72; // which clears it
  }
  for (const [i, layer] of heated.entries()) {
    if (!(method in layer.heat)) continue;
    const { values, w, h } = await heatOf(layer, method, photo, rank);
    if (rank !== state.rank || photo !== state.photo || method !== stripMethod()) return;
    paint(canvasOf(i), enlarged(values, w, h, 72, 72), 72, 72, state.colours);
  }
}

function showPixels() {
  const photo = currentPhoto(), methods = DATA.methods.filter((method) => method.pixels && !method.heat);
  byId("pixels-lead").replaceChildren(...(methods.length
    ? ["The pictures show gradients of the score of ", named(currentClass()), " for ", named(photo.name), " at each pixel and colour. Mid-grey is zero. Each picture is on its own scale."]
    : ["No gradient comes back to the input."]));
  byId("pixels").replaceChildren(...methods.map(({ pixels, title, shows, misses }) => make("figure", {},
    make("img", { src: pictureUrl(photo.pixels[pixels].pictures[state.rank]), alt: `${title} of ${currentClass()} for ${photo.name}`, decoding: "async" }),
    make("figcaption", {}, photo.pixels[pixels].empty[state.rank] ? null : colourBar("gray", number(-photo.pixels[pixels].ends[state.rank]), number(photo.pixels[pixels].ends[state.rank]), "gradient"),
      make("strong", {}, title), photo.pixels[pixels].empty[state.rank] ? ": all gradients are zero." : helpOf({ title: "", shows, misses }),
      make("span", { class: "caution" }, cautionOf({ pixels }))))));
}
