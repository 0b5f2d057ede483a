// One channel alone: its activations on each photo, its filter pattern, its top activations over a dataset.

const unitDialog = byId("unit");
let currentUnit = null;

function showUnit(layer, channel) {
  currentUnit = { layer, channel };
  const i = layer.channels.indexOf(channel);
  const title = make("h2", { id: "unit-title", tabindex: "-1" }, make("code", {}, layer.name), ` channel ${channel}`);
  const address = unitAddress(layer, channel);
  const parts = [
    make("header", {},
      make("div", {}, title, make("p", { class: "kind" }, `${kindOf(layer)}, ${layer.shape.join(" × ")}`)),
      make("button", { type: "button", class: "close", "aria-label": "Close", onclick: () => closeUnit() }, "×")),
  ];
  if (channel < layer.shape[0]) parts.push(statistics(layer, channel));
  if (i < 0) parts.push(absent(layer, channel));
  else {
    const pattern = layer.patterns[channel], top = layer.top[channel];
    const body = make("div", { class: "body" }, DATA.photos.length ? onPhotos(layer, i) : null);
    if (pattern !== undefined) body.append(make("section", { class: "pattern" }, make("h3", {}, "Filter pattern"),
      make("figure", {}, make("img", { src: pictureUrl(pattern), alt: `Filter pattern of channel ${channel} of ${layer.name}` }),
        make("figcaption", {}, `Gradient ascent on the input made this picture by the recipe ${layer.recipe}: it maximizes the channel's activation.`))));
    else if (layer.without[channel]) body.append(make("section", { class: "pattern" }, make("h3", {}, "Filter pattern"), make("p", { class: "about-maps" }, layer.without[channel])));
    parts.push(body);
    if (top) parts.push(strongestPatches(top));
    if (top?.used) parts.push(usedFor(top.used));
    if (layer.similar[channel]) parts.push(similarChannels(layer, layer.similar[channel]));
  }
  parts.push(steps(layer, channel), addressLine(address));
  unitDialog.replaceChildren(make("div", { class: "sheet" }, ...parts));
  if (!unitDialog.open) unitDialog.showModal();
  unitDialog.scrollTop = 0;
  title.focus({ preventScroll: true });
  document.title = `${layer.name}/${channel}: ${pageTitle}`;
}

/** The address of a channel, and a button that copies it: whole, or in a notebook, where the page has none, its last part. */
function addressLine(address) {
  const link = make("a", { href: address }, named(decodeURIComponent(address))), said = make("span", { role: "status" });
  const copy = make("button", { type: "button", class: "step", onclick: async () => {
    const whole = location.protocol === "about:" ? address : location.href;
    said.textContent = (await copied(whole, link)) ? " The link is copied." : " The browser does not allow it: copy the address.";
  } }, "Copy link");
  return make("p", { class: "address" }, "Address of this channel: ", link, " ", copy, said);
}

async function copied(text, link) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { // not allowed, or not there, as in a notebook's frame
    getSelection().selectAllChildren(link);
    return false;
  }
}

function absent(layer, channel) {
  const some = layer.channels.slice(0, 8).map((c) => make("a", { href: unitAddress(layer, c) }, c));
  const many = channel < layer.shape[0]
    ? `is not among the ${layer.channels.length} of ${layer.shape[0]} channels that this page shows of the layer.`
    : `does not exist: the layer has ${layer.shape[0]} channels.`;
  return make("p", { class: "note" }, `Channel ${channel} ${many} It shows, for example: `, ...some.flatMap((a, i) => (i ? [", ", a] : [a])));
}

function statistics(layer, channel) {
  const rows = [];
  if (layer.field) rows.push(["receptive field", fieldSize(layer)]);
  if (DATA.photos.length) {
    const peaks = layer.peak.map((of) => of[channel]);
    const best = peaks.reduce((at, v, p) => (v > peaks[at] ? p : at), 0);
    const average = (key) => layer[key].reduce((sum, of) => sum + (of[channel] ?? 0), 0) / layer[key].length;
    rows.push(["maximum", number(peaks[best]), ...(DATA.photos.length > 1 ? [", on ", named(DATA.photos[best].name)] : [])]);
    rows.push(["mean, negative values as 0", number(average("mean"))], ["sparsity", percent(average("sparsity"))]);
  }
  return figuresOf(rows);
}

const figuresOf = (rows) => make("dl", { class: "figures" }, ...rows.map(([name, ...value]) => make("div", {}, make("dt", {}, name), make("dd", {}, ...value))));

/** What a channel of a layer without places gives: a number for each photo, and no picture. */
function oneValue(layer, i) {
  const rows = DATA.photos.map((photo, p) => [photo.name, number(layer.peak[p][layer.channels[i]])]);
  return make("section", {}, make("h3", {}, DATA.photos.length > 1 ? "On the photos" : "On the photo"),
    make("p", { class: "about-maps" }, "The map of this channel has one place, and so one value."), figuresOf(rows));
}

/** The colours of the maps of a channel: those over the photo, and those of the whole maps, which are one scale for all photos. */
function mapBars(layer, i, all) {
  const [low, high] = layer.range[i], { mean, deviation } = spread(all);
  const valueAt = (level) => number(low + ((high - low) * Math.min(255, Math.max(0, level))) / 255);
  return make("p", { class: "about-maps" }, colourBar(state.colours, "0", number(high), "over the photo", true),
    colourBar(TILE_COLOURS, valueAt(mean - 2 * deviation), valueAt(mean + 2 * deviation), "the whole map"));
}

/** Its map on each photo, alone and over the photo; all photos are on one scale. */
function onPhotos(layer, i) {
  if (layer.size[0] * layer.size[1] === 1) return oneValue(layer, i);
  const maps = Promise.all(DATA.photos.map((_, p) => mapsOf(layer.maps[p], layer.size).then((all) => all[i])));
  const bars = make("div", { class: "map-bars" });
  track(maps.then((all) => bars.replaceChildren(mapBars(layer, i, all))));
  const figures = DATA.photos.map((photo, p) => {
    const over = make("canvas", { role: "img", "aria-label": `Activation of channel ${layer.channels[i]} of ${layer.name} over ${photo.name}` });
    const alone = make("canvas", { role: "img", class: "alone", "aria-label": `Activation map of the channel on ${photo.name}` });
    const figure = make("figure", {}, make("div", { class: "pair" }, over, alone),
      make("figcaption", {}, make("strong", {}, photo.name), ` maximum ${number(layer.peak[p][layer.channels[i]])}, `, explained("sparsity", SPARSITY), ` ${percent(layer.sparsity[p][layer.channels[i]])}`));
    track(maps.then((all) => {
      const [h, w] = layer.size, zero = layer.zero[i], levels = all[p];
      paint(alone, standardised(levels, all), w, h, TILE_COLOURS);
      alone.classList.toggle("coarse", w < 48);
      const positive = Float32Array.from(levels, (v) => (zero < 255 ? Math.max(0, ((v - zero) * 255) / (255 - zero)) : 0));
      return drawView(over, p, (part) =>
        paint(document.createElement("canvas"), enlarged(positive, w, h, part.width, part.height), part.width, part.height, state.colours, true), state.opacity);
    }));
    return figure;
  });
  return make("section", {}, make("h3", {}, DATA.photos.length > 1 ? "On the photos" : "On the photo"),
    make("p", { class: "about-maps" }, `The left picture shows the positive part over the network's input, the right picture the whole map.${DATA.photos.length > 1 ? " All photos are on one scale." : ""}`),
    make("div", { class: "photos" }, ...figures), bars);
}

/** Patches lie side by side in one picture, and so do projections: each is drawn on a canvas of its own. */
function cut(block, values, what, number_of) {
  const canvases = values.map((value, n) => make("canvas", { role: "img", "aria-label": `${what} ${n + 1}, ${number_of} ${number(value)}` }));
  const image = new Image();
  image.src = pictureUrl(block);
  track(image.decode().then(() => {
    for (const [n, canvas] of canvases.entries()) {
      canvas.width = image.height;
      canvas.height = image.height;
      canvas.getContext("2d").drawImage(image, -n * image.height, 0);
    }
  }));
  return canvases;
}

function strongestPatches(top) {
  const title = make("h3", {}, "Top activations");
  const figures = figuresOf(Object.entries(top.statistics).map(([name, value]) => [name, name === DATA.sparsity ? percent(value) : typeof value === "string" ? named(value) : number(value)]));
  if (top.patches === null) return make("section", {}, title, make("p", {}, "The photos of the dataset were not available."), figures);
  const patches = cut(top.patches, top.values, "Patch", "activation");
  const projections = top.projections === null ? [] : cut(top.projections, top.values, "Projection of patch", "activation");
  const items = top.values.flatMap((value, n) => (value === null ? [] : [make("li", {}, patches[n], projections[n] ?? null, make("span", { class: "number" }, number(value)))]));
  const words = projections.length ? "These patches of a dataset activate the channel most. Beside each patch is its projection by the deconvnet, below it the activation." : "These patches of a dataset activate the channel most. Below each is the activation.";
  return make("section", { class: projections.length ? "strongest" : "strongest alone" }, title, make("p", {}, words), make("ol", {}, ...items), figures);
}

/** Where the channel adds most to a score, which need not be where it is strongest. */
function usedFor(used) {
  const items = cut(used.patches, used.values, "Patch", "relevance").map((canvas, n) => make("li", {}, canvas, make("span", { class: "number" }, number(used.values[n]))));
  return make("section", { class: "strongest alone" }, make("h3", {}, "Used for"),
    make("p", {}, "In the photos of these patches the channel adds most to the score of ", named(used.target), ". The number is its relevance: activation × gradient, summed over the photo."),
    make("ol", {}, ...items));
}

function similarChannels(layer, similar) {
  const links = similar.flatMap(([other, cosine], n) => [n ? ", " : "", make("a", { href: unitAddress(layer, other) }, other), ` (${number(cosine)})`]);
  return make("p", { class: "similar" }, "Similar channels, by the cosine of their weights: ", ...links);
}

function steps(layer, channel) {
  const channels = layer.channels, at = channels.indexOf(channel), place = DATA.layers.indexOf(layer);
  const link = (label, to, name) => (to ? make("a", { class: "step", href: to, "aria-label": name, "data-step": name }, label) : make("span", { class: "step" }, label));
  const beside = (step) => {
    const next = step < 0 ? channels.findLast((c) => c < channel) : channels.find((c) => c > channel);
    return next === undefined ? null : unitAddress(layer, next);
  };
  const near = (step) => {
    const other = step < 0 ? DATA.layers.slice(0, place).findLast(pictured) : DATA.layers.slice(place + 1).find(pictured);
    return other ? unitAddress(other, other.channels[Math.max(0, Math.min(at, other.channels.length - 1))]) : null;
  };
  return make("nav", { class: "steps", "aria-label": "Neighbouring channels and layers" },
    link("← channel", beside(-1), "Previous channel"), link("channel →", beside(1), "Next channel"),
    link("↑ layer", near(-1), "Previous layer"), link("↓ layer", near(1), "Next layer"));
}

/** Close the unit and go to its layer. */
function closeUnit() {
  if (currentUnit) location.hash = layerAddress(currentUnit.layer);
}

unitDialog.addEventListener("cancel", (event) => { event.preventDefault(); closeUnit(); });
unitDialog.addEventListener("click", (event) => { if (event.target === unitDialog) closeUnit(); });
unitDialog.addEventListener("keydown", (event) => {
  const name = { ArrowLeft: "Previous channel", ArrowRight: "Next channel", ArrowUp: "Previous layer", ArrowDown: "Next layer" }[event.key];
  const step = name && !event.altKey && !event.ctrlKey && !event.metaKey && unitDialog.querySelector(`a[data-step="${name}"]`);
  if (step) { event.preventDefault(); location.hash = step.getAttribute("href"); }
});
