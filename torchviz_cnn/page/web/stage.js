// What the whole page follows (photo, class, method, layer, colours), and the heatmap over the photo.

const state = { photo: 0, rank: 0, method: "grad-cam", layer: null, opacity: 0.7, colours: "jet", show: "activations", order: "number" };
const heated = DATA.layers.filter((layer) => layer.heat);
const listeners = [];

/** Change something, and tell what depends on it. */
function change(changes) {
  Object.assign(state, changes);
  const photo = DATA.photos[state.photo];
  if (photo) state.rank = Math.min(state.rank, photo.classes.length - 1);
  for (const listener of listeners) listener(changes);
}

const photoNow = () => DATA.photos[state.photo];
const classNow = () => className(photoNow().classes[state.rank]);

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
  state.layer = (heated.find((layer) => layer.name === DATA.explained) ?? heated.at(-1) ?? {}).name ?? null;
  const first = photoNow();
  const methods = [];
  if (heated.length) methods.push(["grad-cam", "Grad-CAM"]);
  if (heated.length && first.pixels.guided) methods.push(["guided-grad-cam", "Guided Grad-CAM"]);
  for (const [rule, label] of Object.entries(DATA.methods)) if (first.pixels[rule]) methods.push([rule, label]);
  state.method = (methods[0] ?? [null])[0];
  chips(byId("method-switch"), "method", methods, state.method, (method) => change({ method }));
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
    if ("photo" in changes || "rank" in changes || "colours" in changes) drawStrip();
    if (["photo", "rank", "method", "layer", "opacity", "colours"].some((key) => key in changes)) drawHeatmap();
    if ("layer" in changes) chooseLayer();
    if ("photo" in changes || "rank" in changes) showPixels();
  });
  if (!methods.length) byId("heatmap-caption").textContent = "No gradient comes back to any layer, nor to the input.";
}

/** The size of a picture is known before it is drawn, so that nothing on the page moves then. */
function reserve() {
  const { width, height, pixels } = photoNow();
  Object.assign(byId("heatmap"), { width, height });
  const [h, w] = (Object.values(pixels)[0] ?? { size: [1, 1] }).size;
  byId("pixels").style.setProperty("--shape", `${w} / ${h}`);
}

function chooseLayer() {
  const i = heated.findIndex((layer) => layer.name === state.layer);
  check("depth", i);
  const chip = byId(`depth-${i}`)?.parentElement, strip = byId("depth-switch");
  if (chip) strip.scrollLeft = chip.offsetLeft - strip.offsetLeft - (strip.clientWidth - chip.clientWidth) / 2;
}

function showPhoto() {
  const photo = photoNow();
  if (byId("heatmap").width !== photo.width || byId("heatmap").height !== photo.height) reserve();
  check("photo", state.photo);
  byId("veiled").hidden = seesAll(seenPart(photo, photo.width, photo.height), photo.width, photo.height);
  for (const card of document.querySelectorAll(".card")) {
    const chosen = Number(card.dataset.photo) === state.photo;
    card.classList.toggle("chosen", chosen);
    card.querySelector(".pick").setAttribute("aria-pressed", String(chosen));
  }
  const options = photo.classes.map((c, rank) => [rank, `${className(c)} `, null]);
  chips(byId("class-switch"), "class", options, state.rank, (rank) => change({ rank: Number(rank) }));
  photo.classes.forEach((_, rank) =>
    byId(`class-${rank}`).nextSibling.append(make("small", {}, chance(photo.chances[rank]))));
}

/** What the chosen method says: values 0..255 with their size, and words. */
async function explanation() {
  const photo = photoNow(), layer = heated.find((one) => one.name === state.layer);
  const layered = state.method === "grad-cam" || state.method === "guided-grad-cam";
  if (layered) {
    const [h, w] = layer.heat.size;
    const heat = (await mapsOf(layer.heat.maps[state.photo], layer.heat.size))[state.rank];
    const empty = layer.heat.empty[state.photo][state.rank];
    if (state.method === "grad-cam") return { values: heat, w, h, words: "Grad-CAM", at: layer.name, empty };
    const guided = photo.pixels.guided;
    const fine = (await mapsOf(guided.maps, guided.size))[state.rank];
    const [H, W] = guided.size;
    const wide = enlarged(heat, w, h, W, H);
    const product = fine.length === wide.length ? wide.map((v, i) => (v * fine[i]) / 255) : wide;
    const peak = product.reduce((a, b) => Math.max(a, b), 0);
    return { values: peak ? product.map((v) => (v * 255) / peak) : product, w: W, h: H, words: "Guided Grad-CAM", at: layer.name, empty: empty || !peak };
  }
  const pixels = photo.pixels[state.method];
  const values = (await mapsOf(pixels.maps, pixels.size))[state.rank];
  return { values, w: pixels.size[1], h: pixels.size[0], words: DATA.methods[state.method], empty: pixels.empty[state.rank] };
}

const heatmapNow = { key: null, canvas: null };

async function drawHeatmap() {
  if (!state.method) return drawOverlay(byId("heatmap"), state.photo, null, 1);
  const key = [state.photo, state.rank, state.method, state.layer, state.colours].join("\n");
  const asked = (drawHeatmap.asked = {});
  const [found] = await Promise.all([explanation(), photoImage(state.photo)]);
  if (asked !== drawHeatmap.asked) return;
  await drawOverlay(byId("heatmap"), state.photo, (part) => {
    if (heatmapNow.key !== key) {
      // Beyond the photo there is nothing to colour: of a padded input only what lies on it is enlarged.
      const values = enlarged(found.values, found.w, found.h, part.width, part.height);
      heatmapNow.canvas = paint(document.createElement("canvas"), values, part.width, part.height, state.colours, true);
      heatmapNow.key = key;
    }
    return heatmapNow.canvas;
  }, state.opacity);
  const photo = photoNow();
  const said = [found.words, ...(found.at ? [" at ", named(found.at)] : []), " for ", named(classNow()), ` (${chance(photo.chances[state.rank])})`];
  byId("heatmap-caption").replaceChildren(...said, found.empty ? ": nothing speaks for it here." : "");
  byId("heatmap").setAttribute("aria-label", `${said.map((part) => part.textContent ?? part).join("")}, over the photo ${photo.name}${found.empty ? ": nothing speaks for it" : ""}`);
}

async function drawStrip() {
  const rank = state.rank, photo = state.photo;
  for (const [i, layer] of heated.entries()) {
    const canvas = byId(`depth-${i}`).nextSibling.querySelector("canvas");
    const heat = (await mapsOf(layer.heat.maps[photo], layer.heat.size))[rank];
    if (rank !== state.rank || photo !== state.photo) return;
    const [h, w] = layer.heat.size;
    paint(canvas, enlarged(heat, w, h, 72, 72), 72, 72, state.colours);
  }
}

function showPixels() {
  const photo = photoNow(), rules = Object.entries(DATA.methods).filter(([rule]) => photo.pixels[rule]);
  const words = {
    standard: "The gradient itself: what a small change of each pixel would do.",
    guided: "Only what adds up to the class, on the way back through every ReLU.",
    deconvnet: "What the rectified signal leads back to.",
  };
  byId("pixels-lead").replaceChildren(...(rules.length
    ? ["How the score of ", named(classNow()), " (", named(photo.name), ") changes with each pixel and colour: mid-grey is no change. Each picture is on its own scale."]
    : ["No gradient comes back to the input."]));
  byId("pixels").replaceChildren(...rules.map(([rule, label]) => make("figure", {},
    make("img", { src: pictureUrl(photo.pixels[rule].pictures[state.rank]), alt: `${label} of ${classNow()} for ${photo.name}`, decoding: "async" }),
    make("figcaption", {}, make("strong", {}, label), ` ${photo.pixels[rule].empty[state.rank] ? "Nothing: no pixel matters." : words[rule]}`))));
}
