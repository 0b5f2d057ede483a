// One channel alone: what it does on each photo, what it looks for, where it is strongest.

const unitDialog = byId("unit");
let unitNow = null;

function showUnit(layer, channel) {
  unitNow = { layer, channel };
  const i = layer.channels.indexOf(channel);
  const title = make("h2", { id: "unit-title", tabindex: "-1" }, make("code", {}, layer.name), ` channel ${channel}`);
  const address = unitAddress(layer, channel);
  const parts = [
    make("header", {},
      make("div", {}, title, make("p", { class: "kind" }, `${layer.kind}, ${layer.shape.join(" × ")}`)),
      make("button", { type: "button", class: "close", "aria-label": "Close", onclick: () => closeUnit() }, "×")),
  ];
  if (channel < layer.shape[0]) parts.push(statistics(layer, channel));
  if (i < 0) parts.push(absent(layer, channel));
  else {
    const pattern = layer.patterns[channel], top = layer.top[channel];
    const body = make("div", { class: "body" }, DATA.photos.length ? onPhotos(layer, i) : null);
    if (pattern !== undefined) body.append(make("section", { class: "pattern" }, make("h3", {}, "What it looks for"),
      make("figure", {}, make("img", { src: pictureUrl(pattern), alt: `Filter pattern of channel ${channel} of ${layer.name}` }),
        make("figcaption", {}, "An input made to drive this channel as far as it will go."))));
    else if (layer.late.includes(channel)) body.append(make("section", { class: "pattern" }, make("h3", {}, "What it looks for"),
      make("p", { class: "about-maps" }, "No pattern: the time given was over.")));
    parts.push(body);
    if (top) parts.push(strongestPatches(layer, channel, top));
  }
  parts.push(steps(layer, channel), make("p", { class: "address" }, "Address of this unit: ", make("a", { href: address }, named(decodeURIComponent(address)))));
  unitDialog.replaceChildren(make("div", { class: "sheet" }, ...parts));
  if (!unitDialog.open) unitDialog.showModal();
  unitDialog.scrollTop = 0;
  title.focus({ preventScroll: true });
  document.title = `${layer.name}/${channel}: ${pageTitle}`;
}

function absent(layer, channel) {
  const some = layer.channels.slice(0, 8).map((c) => make("a", { href: unitAddress(layer, c) }, c));
  const many = channel < layer.shape[0]
    ? `is not among the ${layer.channels.length} of ${layer.shape[0]} channels of this layer whose maps are in this page.`
    : `does not exist: the layer has ${layer.shape[0]} channels.`;
  return make("p", { class: "note" }, `Channel ${channel} ${many} Some that it shows: `, ...some.flatMap((a, i) => (i ? [", ", a] : [a])));
}

function statistics(layer, channel) {
  const rows = [];
  if (layer.field) rows.push(["sees", layer.field.size === "all" ? "the whole input" : `${layer.field.size} px of the input`]);
  if (DATA.photos.length) {
    const peaks = layer.peak.map((of) => of[channel]);
    const best = peaks.reduce((at, v, p) => (v > peaks[at] ? p : at), 0);
    const average = (key) => layer[key].reduce((sum, of) => sum + (of[channel] ?? 0), 0) / layer[key].length;
    rows.push(["strongest", number(peaks[best]), ...(DATA.photos.length > 1 ? [", on ", named(DATA.photos[best].name)] : [])]);
    rows.push(["mean, negative values as 0", number(average("mean"))], ["at rest: not above 0", percent(1 - average("active"))]);
  }
  return figuresOf(rows);
}

const figuresOf = (rows) => make("dl", { class: "figures" }, ...rows.map(([name, ...value]) => make("div", {}, make("dt", {}, name), make("dd", {}, ...value))));

/** Its map on each photo, by itself and over the photo; all photos on one scale. */
function onPhotos(layer, i) {
  const maps = Promise.all(DATA.photos.map((_, p) => mapsOf(layer.maps[p], layer.size).then((all) => all[i])));
  const figures = DATA.photos.map((photo, p) => {
    const over = make("canvas", { role: "img", "aria-label": `Where channel ${layer.channels[i]} of ${layer.name} fires on ${photo.name}` });
    const alone = make("canvas", { role: "img", class: "alone", "aria-label": `Its activation map on ${photo.name}` });
    const figure = make("figure", {}, make("div", { class: "pair" }, over, alone),
      make("figcaption", {}, make("strong", {}, photo.name), ` strongest ${number(layer.peak[p][layer.channels[i]])}, ${percent(1 - layer.active[p][layer.channels[i]])} `, explained("at rest", AT_REST)));
    maps.then((all) => {
      const [h, w] = layer.size, zero = layer.zero[i], levels = all[p];
      paint(alone, standardised(levels, all), w, h, TILE_COLOURS);
      alone.classList.toggle("coarse", w < 48);
      const positive = Float32Array.from(levels, (v) => (zero < 255 ? Math.max(0, ((v - zero) * 255) / (255 - zero)) : 0));
      return drawSeen(over, p, (part) =>
        paint(document.createElement("canvas"), enlarged(positive, w, h, part.width, part.height), part.width, part.height, state.colours, true), state.opacity);
    });
    return figure;
  });
  return make("section", {}, make("h3", {}, DATA.photos.length > 1 ? "On the photos" : "On the photo"),
    make("p", { class: "about-maps" }, `Left where it is above 0, over what the network saw; right its whole map.${DATA.photos.length > 1 ? " All photos are on one scale." : ""}`),
    make("div", { class: "photos" }, ...figures));
}

/** The patches lie in one picture, side by side, and so do their projections: each is cut out onto a canvas. */
function strongestPatches(layer, channel, top) {
  const title = make("h3", {}, "Where it is strongest");
  const said = figuresOf(Object.entries(top.statistics).map(([name, value]) => [name, name === DATA.zeros ? percent(value) : typeof value === "string" ? named(value) : number(value)]));
  if (top.patches === null) return make("section", {}, title, make("p", {}, "Out of a whole dataset, whose photos were not at hand."), said);
  const cut = (block, said) => {
    const canvases = top.values.map((value, n) => make("canvas", { role: "img", "aria-label": `${said} ${n + 1}, activation ${number(value)}` }));
    const image = new Image();
    image.src = pictureUrl(block);
    image.decode().then(() => canvases.forEach((canvas, n) => {
      canvas.width = canvas.height = image.height;
      canvas.getContext("2d").drawImage(image, -n * image.height, 0);
    }));
    return canvases;
  };
  const patches = cut(top.patches, "Patch");
  const projections = top.projections === null ? [] : cut(top.projections, "What drives it in patch");
  const items = top.values.flatMap((value, n) => (value === null ? [] : [make("li", {}, patches[n], projections[n] ?? null, make("span", { class: "number" }, number(value)))]));
  const words = projections.length ? "Out of a whole dataset; beside each patch what in it drives the channel, by the deconvnet." : "Out of a whole dataset.";
  return make("section", { class: projections.length ? "strongest" : "strongest alone" }, title, make("p", {}, words), make("ol", {}, ...items), said);
}

function steps(layer, channel) {
  const channels = layer.channels, at = channels.indexOf(channel), place = DATA.layers.indexOf(layer);
  const link = (label, to, said) => (to ? make("a", { class: "step", href: to, "aria-label": said, "data-step": said }, label) : make("span", { class: "step" }, label));
  const beside = (step) => {
    const next = step < 0 ? channels.findLast((c) => c < channel) : channels.find((c) => c > channel);
    return next === undefined ? null : unitAddress(layer, next);
  };
  const near = (step) => {
    const other = step < 0 ? DATA.layers.slice(0, place).findLast(pictured) : DATA.layers.slice(place + 1).find(pictured);
    return other ? unitAddress(other, other.channels[Math.max(0, Math.min(at, other.channels.length - 1))]) : null;
  };
  return make("nav", { class: "steps", "aria-label": "Neighbours" },
    link("← channel", beside(-1), "Previous channel"), link("channel →", beside(1), "Next channel"),
    link("↑ layer", near(-1), "Previous layer"), link("↓ layer", near(1), "Next layer"));
}

/** Leave the unit for its layer. */
function closeUnit() {
  if (unitNow) location.hash = layerAddress(unitNow.layer);
}

unitDialog.addEventListener("cancel", (event) => { event.preventDefault(); closeUnit(); });
unitDialog.addEventListener("click", (event) => { if (event.target === unitDialog) closeUnit(); });
unitDialog.addEventListener("keydown", (event) => {
  const said = { ArrowLeft: "Previous channel", ArrowRight: "Next channel" }[event.key];
  const step = said && !event.altKey && !event.ctrlKey && !event.metaKey && unitDialog.querySelector(`a[data-step="${said}"]`);
  if (step) { event.preventDefault(); location.hash = step.getAttribute("href"); }
});
