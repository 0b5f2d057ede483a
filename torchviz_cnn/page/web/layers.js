// Activations over depth, and every layer's channels side by side.

const cards = new Map();
const TILE_COLOURS = "viridis";
const SPARSITY = "Sparsity is the share of values that are zero or below.";
const DEAD = "A dead channel is never above zero on this photo.";

/** A term with its meaning as a tooltip. */
const explained = (word, meaning) => make("span", { class: "term", title: meaning }, word);

const fieldSize = (layer) => (layer.field.size === "all" ? "the whole input" : `${layer.field.size} px`);
/** The kind of a layer, and what its activation comes from. */
const kindOf = (layer) => (layer.after.length ? `${layer.kind} with its ${layer.after.join(" and ")}` : layer.kind);
const layerAddress = (layer) => `#${encodeURIComponent(layer.name)}`;
const unitAddress = (layer, channel) => `${layerAddress(layer)}/${channel}`;
const hasPatterns = DATA.layers.some((layer) => Object.keys(layer.patterns).length);
/** Whether a layer has something to show: maps on photos, or filter patterns. */
const pictured = (layer) => DATA.photos.length > 0 || !hasPatterns || Object.keys(layer.patterns).length > 0;

function setUpLayers() {
  if (!DATA.layers.length) {
    byId("layer-list").append(make("p", { class: "note" }, "This network has no layer that gives maps."));
    for (const part of document.querySelectorAll(".toolbar, #depth-plot")) part.hidden = true;
    return;
  }
  const shown = [];
  if (DATA.photos.length) shown.push(["activations", "Activations"]);
  if (hasPatterns) shown.push(["patterns", "Filter patterns"]);
  state.show = (shown[0] ?? ["activations"])[0];
  byId("show-field").hidden = shown.length < 2;
  chips(byId("show-switch"), "show", shown, state.show, (show) => change({ show }));
  chips(byId("order-switch"), "order", [["number", "By number"], ["strength", "Strongest first"]], state.order, (order) => change({ order }));
  byId("order-switch").closest("fieldset").hidden = !DATA.photos.length;
  const jump = byId("jump");
  jump.append(...DATA.layers.flatMap((layer, i) => (pictured(layer) ? [make("option", { value: i }, layer.name)] : [])));
  jump.addEventListener("change", () => { location.hash = layerAddress(DATA.layers[jump.value]); });
  byId("layer-list").append(...DATA.layers.map(layerCard));
  listeners.push((changes) => {
    if ("photo" in changes) { drawPlots(); for (const card of cards.values()) card.describe(); }
    if ("photo" in changes || "show" in changes || "order" in changes) for (const card of cards.values()) card.stale();
  });
  const watcher = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting) cards.get(target.dataset.layer).draw();
  }, { rootMargin: "400px" });
  for (const card of cards.values()) watcher.observe(card.element);
  new ResizeObserver(() => drawPlots()).observe(byId("depth-plot"));
  track(drawRest());
  if (DATA.photos.length) byId("maps-legend").append(colourBar(TILE_COLOURS, "mean − 2 sd", "mean + 2 sd", "of each map"));
  listeners.push(() => { byId("maps-legend").hidden = state.show === "patterns"; });
  window.addEventListener("beforeprint", () => { for (const card of cards.values()) card.print(); });
}

const idle = window.requestIdleCallback ? (work) => window.requestIdleCallback(work) : (work) => setTimeout(work, 200);

/** Draw the layers outside the window while the browser is idle, so that a print has them all. */
async function drawRest() {
  for (const card of cards.values()) {
    await new Promise(idle);
    await card.draw();
  }
}

function layerCard(layer) {
  const grid = make("div", { class: "tiles", role: "group", "aria-label": `Channels of ${layer.name}` });
  const about = make("p", { class: "about" });
  const heading = make("h3", { tabindex: "-1" }, make("a", { href: layerAddress(layer) }, make("code", {}, layer.name)));
  const [count, height, width] = layer.shape;
  const field = layer.field ? `, receptive field ${fieldSize(layer)}` : "";
  const part = layer.channels.length < count ? `${layer.channels.length} of ${count} channels` : `${count} channel${count === 1 ? "" : "s"}`;
  const printed = make("div", { class: "tiles printed", "data-show": "patterns", "aria-hidden": "true" });
  const element = make("article", { class: "layer", "data-layer": layer.name },
    make("header", {}, heading, make("p", { class: "kind" }, `${kindOf(layer)}, ${part}, ${height} × ${width}${field}`), about), grid, printed);
  const single = height * width === 1;
  if (single) grid.classList.add("single");
  const peakOf = (i) => layer.peak[state.photo][layer.channels[i]];
  let fresh = false, tiles = [], request = null;

  function describe() {
    if (!DATA.photos.length) return;
    const p = state.photo, dead = layer.dead[p];
    about.replaceChildren(`mean activation ${number(layer.layerMean[p])}, `, explained("sparsity", SPARSITY), ` ${percent(layer.layerSparsity[p])}`,
      ...(dead ? [`, ${dead} `, explained("dead", DEAD), ` channel${dead === 1 ? "" : "s"}`] : []));
  }

  function build() {
    let order = layer.channels.map((_, i) => i);
    if (state.show === "patterns") order = order.filter((i) => layer.patterns[layer.channels[i]] !== undefined);
    if (state.order === "strength" && DATA.photos.length) order.sort((a, b) => peakOf(b) - peakOf(a));
    tiles = order.map((i, place) => {
      const channel = layer.channels[i];
      const peak = DATA.photos.length ? `, maximum ${number(peakOf(i))}` : "";
      return { i, channel, link: make("a", { class: "tile", href: unitAddress(layer, channel), tabindex: place ? "-1" : "0",
        "aria-label": `Channel ${channel} of ${layer.name}${peak}` }, make("span", { class: "none" }), make("span", { class: "number" }, channel)) };
    });
    grid.replaceChildren(...tiles.map((tile) => tile.link));
    grid.dataset.show = state.show;
    element.hidden = !tiles.length;
    grid.style.setProperty("--shape", `${layer.size[1]} / ${layer.size[0]}`);
  }

  const draw = () => track(drawTiles());

  async function drawTiles() {
    if (fresh) return;
    fresh = true;
    const mine = {};
    request = mine;
    build();
    const asPatterns = state.show === "patterns", photo = state.photo;
    const levels = !asPatterns && DATA.photos.length ? await mapsOf(layer.maps[photo], layer.size) : null;
    if (mine !== request) return; // another photo was chosen meanwhile
    for (const { i, channel, link } of tiles) {
      const label = make("span", { class: "number" }, channel);
      if (asPatterns) {
        const picture = layer.patterns[channel];
        link.replaceChildren(make("img", { src: pictureUrl(picture), alt: "", decoding: "async" }), label);
      } else if (levels && single) link.replaceChildren(barOf(peakOf(i)), label);
      else if (levels) {
        const canvas = paint(make("canvas", { "aria-hidden": "true" }), standardised(levels[i]), layer.size[1], layer.size[0], TILE_COLOURS);
        canvas.classList.toggle("coarse", layer.size[1] < 48);
        link.replaceChildren(canvas, label);
      } else link.replaceChildren(make("span", { class: "none" }), label);
    }
  }

  /** A map of one value as a bar, as high as its share of the layer's strongest. */
  function barOf(value) {
    const strongest = layer.channels.reduce((peak, c) => Math.max(peak, Math.abs(layer.peak[state.photo][c] ?? 0)), 0) || 1;
    const bar = make("meter", { min: 0, max: 1, value: Math.abs(value ?? 0) / strongest, "aria-hidden": "true" });
    return make("span", { class: "value" }, number(value), bar);
  }

  /** Below the activations, the filter patterns, in print alone. */
  function print() {
    if (state.show === "patterns" || printed.children.length) return;
    printed.append(...layer.channels.filter((c) => layer.patterns[c] !== undefined).map((channel) => make("span", { class: "tile" },
      make("img", { src: pictureUrl(layer.patterns[channel]), alt: "" }), make("span", { class: "number" }, channel))));
  }

  function stale() {
    fresh = false;
    request = null;
    const box = element.getBoundingClientRect();
    if (box.top < innerHeight + 400 && box.bottom > -400) draw();
    else track(new Promise(idle).then(draw));
  }

  grid.addEventListener("keydown", (event) => {
    const links = tiles.map((tile) => tile.link), at = links.indexOf(document.activeElement);
    const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -at, End: links.length - 1 - at }[event.key];
    if (at < 0 || step === undefined) return;
    event.preventDefault();
    focusTile(links[Math.min(Math.max(at + step, 0), links.length - 1)]);
  });

  function focusTile(link) {
    if (!link) return;
    for (const tile of tiles) tile.link.tabIndex = tile.link === link ? 0 : -1;
    link.focus();
  }

  describe();
  build();
  cards.set(layer.name, { element, describe, draw, stale, print, focusChannel: (c) => focusTile(tiles.find((tile) => tile.channel === c)?.link) });
  return element;
}

/** Two curves over depth: mean activation and sparsity, the chosen photo's in colour. */
function drawPlots() {
  const place = byId("depth-plot");
  if (!DATA.photos.length || DATA.layers.length < 2) { place.hidden = true; return; }
  const width = Math.max(260, Math.floor(place.clientWidth / (place.clientWidth > 720 ? 2 : 1)) - 24);
  place.replaceChildren(
    plot("Mean activation, negative values as 0", "layerMean", width, (v) => number(v)),
    plot("Sparsity: share of values that are zero or below", "layerSparsity", width, (v) => percent(v), 1));
}

function plot(title, key, width, text, highest) {
  const height = 190, left = 44, bottom = 26, top = 12, right = 14;
  const values = DATA.layers.map((layer) => layer[key]);
  const peak = highest ?? (Math.max(0, ...values.flat().filter((v) => v !== null)) || 1);
  const x = (i) => left + (i * (width - left - right)) / Math.max(1, values.length - 1);
  const y = (v) => top + (1 - (v ?? 0) / peak) * (height - top - bottom);
  const line = (photo) => values.map((of, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(of[photo]).toFixed(1)}`).join("");
  const now = values.map((of) => of[state.photo]);
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img",
    "aria-label": `${title} by layer for ${currentPhoto().name}: from ${text(now[0])} in ${DATA.layers[0].name} to ${text(now.at(-1))} in ${DATA.layers.at(-1).name}` });
  for (const share of [0, 0.5, 1]) {
    svg.append(drawn("line", { class: "rule", x1: left, x2: width - right, y1: y(share * peak), y2: y(share * peak) }));
    svg.append(drawn("text", { class: "tick", x: left - 8, y: y(share * peak) + 4, "text-anchor": "end" }, share ? text(share * peak) : "0"));
  }
  svg.append(drawn("text", { class: "tick", x: left, y: height - 6 }, "first layer"));
  svg.append(drawn("text", { class: "tick", x: width - right, y: height - 6, "text-anchor": "end" }, "last layer"));
  for (let photo = 0; photo < DATA.photos.length; photo++)
    if (photo !== state.photo) svg.append(drawn("path", { class: "faint", d: line(photo) }));
  svg.append(drawn("path", { class: "curve", d: line(state.photo) }));
  now.forEach((value, i) => {
    const dot = drawn("circle", { class: "dot", cx: x(i), cy: y(value), r: 4.5 });
    dot.append(drawn("title", {}, `${DATA.layers[i].name}: ${text(value)}`));
    dot.addEventListener("click", () => { location.hash = layerAddress(DATA.layers[i]); });
    svg.append(dot);
  });
  return make("figure", { class: "plot" }, make("figcaption", {}, title), svg);
}

function drawn(tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}
