// Addresses, lazy pictures, and the first drawing.

const pageTitle = document.title;

/** The text of an address without its percent-encoding; a % that encodes nothing stays as it is. */
function decoded(text) {
  return text.replace(/(%[0-9a-f]{2})+/gi, (part) => {
    try { return decodeURIComponent(part); } catch { return part; }
  });
}

/** The layer and channel that `#layer/channel` or `#layer` names; null for the sections of the page. A layer's name may itself contain `/`. */
function addressOf() {
  const raw = location.hash.slice(1);
  if (!raw || raw.startsWith("/")) return null;
  const layerOf = (text) => DATA.layers.find((layer) => layer.name === decoded(text));
  const whole = layerOf(raw);
  if (whole) return { layer: whole, channel: null };
  const cut = raw.lastIndexOf("/");
  const layer = cut > 0 ? layerOf(raw.slice(0, cut)) : undefined;
  const channel = raw.slice(cut + 1);
  if (layer && /^\d{1,6}$/.test(channel)) return { layer, channel: Number(channel) };
  return { layer: null, unknown: raw };
}

function follow(behavior = "auto") {
  const address = addressOf(), message = byId("message");
  const left = currentUnit;
  const tell = (...words) => {
    message.replaceChildren(...words);
    message.hidden = false;
    message.scrollIntoView({ block: "center", behavior });
  };
  message.hidden = true;
  if (address?.layer && address.channel !== null) return showUnit(address.layer, address.channel);
  currentUnit = null;
  if (unitDialog.open) unitDialog.close();
  document.title = pageTitle;
  if (!address) return;
  if (!address.layer) {
    const first = DATA.layers[0];
    return tell("The address ", named(decoded(address.unknown)), " does not exist on this page. An address is a layer, or a layer and the number of a channel",
      ...(first ? [": ", named(`${first.name}/${first.channels[0]}`)] : []), ".");
  }
  const card = cards.get(address.layer.name);
  if (!pictured(address.layer)) return tell("The page has no filter pattern of layer ", named(address.layer.name), ", and no photo to show its activations on.");
  if (card.element.hidden) { // among filter patterns, a layer without any
    check("show", "activations");
    change({ show: "activations" });
  }
  card.draw();
  if (left && left.layer === address.layer) {
    card.element.scrollIntoView({ block: "nearest" });
    return card.focusChannel(left.channel);
  }
  card.element.scrollIntoView({ block: "start", behavior });
  card.element.querySelector("h3").focus({ preventScroll: true });
}

/** Give pictures their data when they come near the window. */
function loadPictures() {
  const watcher = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting) load(target);
  }, { rootMargin: "600px" });
  const load = (image) => {
    watcher.unobserve(image);
    if (!image.src) image.src = pictureUrl(image.dataset.block);
  };
  const images = document.querySelectorAll("img[data-block]");
  for (const image of images) watcher.observe(image);
  window.addEventListener("beforeprint", () => images.forEach(load));
  idle(() => images.forEach(load));
}

// In a notebook's frame a link would resolve against the notebook's own address.
document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href^='#']");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  if (link.classList.contains("skip")) return byId("main").focus();
  const to = link.getAttribute("href");
  if (location.hash === to) return goTo(to);
  location.hash = to;
});

function goTo(to) {
  if (!to.startsWith("#/")) return follow();
  const part = byId(to.slice(1));
  if (!part) return;
  part.scrollIntoView();
  part.focus({ preventScroll: true });
}

window.addEventListener("hashchange", () => {
  follow();
  if (location.hash.startsWith("#/")) goTo(location.hash);
});

setUpStage();
setUpLayers();
loadPictures();
if (DATA.photos.length) change({ photo: 0, rank: 0, layer: state.layer });
track(drawCards());
follow("instant");
document.documentElement.dataset.ready = "true";
