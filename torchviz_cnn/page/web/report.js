// Addresses, lazy pictures, and the first drawing.

const pageTitle = document.title;

/** Text of an address as it was meant; a stray % stands for itself. */
function decoded(text) {
  return text.replace(/(%[0-9a-f]{2})+/gi, (part) => {
    try { return decodeURIComponent(part); } catch { return part; }
  });
}

/** What `#layer/channel` or `#layer` means; null for the parts of the page. A layer's name may itself contain `/`. */
function addressed() {
  const raw = location.hash.slice(1);
  if (!raw || raw.startsWith("/")) return null;
  const layerOf = (text) => DATA.layers.find((layer) => layer.name === decoded(text));
  const whole = layerOf(raw);
  if (whole) return { layer: whole, channel: null };
  const cut = raw.lastIndexOf("/");
  const layer = cut > 0 ? layerOf(raw.slice(0, cut)) : undefined;
  const channel = raw.slice(cut + 1);
  if (layer && /^\d{1,6}$/.test(channel)) return { layer, channel: Number(channel) };
  return { layer: null, asked: raw };
}

function follow(behavior = "auto") {
  const address = addressed(), message = byId("message");
  const left = unitNow;
  const tell = (...words) => {
    message.replaceChildren(...words);
    message.hidden = false;
    message.scrollIntoView({ block: "center", behavior });
  };
  message.hidden = true;
  if (address?.layer && address.channel !== null) return showUnit(address.layer, address.channel);
  unitNow = null;
  if (unitDialog.open) unitDialog.close();
  document.title = pageTitle;
  if (!address) return;
  if (!address.layer) {
    const first = DATA.layers[0];
    return tell("This page has nothing at the address ", named(decoded(address.asked)), ". An address is a layer, or a layer and the number of a channel",
      ...(first ? [": ", named(`${first.name}/${first.channels[0]}`)] : []), ".");
  }
  const card = cards.get(address.layer.name);
  if (!pictured(address.layer)) return tell("There is no filter pattern of any channel of ", named(address.layer.name), ", and no photo to show it on.");
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

/** Pictures get their data when they come near the window. */
function loadPictures() {
  const watcher = new IntersectionObserver((seen) => {
    for (const { isIntersecting, target } of seen) if (isIntersecting) load(target);
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
follow("instant");
document.documentElement.dataset.ready = "true";
