// Addresses, the tables, the cautions, and the first drawing.

const pageTitle = document.title;

/** The text of an address without its percent-encoding; a % that encodes nothing stays as it is. */
function decoded(text) {
  return text.replace(/(%[0-9a-f]{2})+/gi, (part) => {
    try { return decodeURIComponent(part); } catch { return part; }
  });
}

function follow() {
  const name = location.hash.startsWith("#photo=") ? decoded(location.hash.slice(7)) : null;
  const message = byId("message"), left = currentPhoto;
  message.hidden = true;
  if (name !== null && placeOf.has(name)) return showPhoto(placeOf.get(name));
  currentPhoto = null;
  if (photoDialog.open) photoDialog.close();
  document.title = pageTitle;
  if (name !== null) {
    message.replaceChildren("The survey has no photo ", named(name), ". An address is #photo= and its name, as ", named(FIGURES.name[0]), ".");
    message.hidden = false;
    return message.scrollIntoView({ block: "center" });
  }
  if (left === null) return location.hash.startsWith("#/") && goTo(location.hash);
  const card = document.querySelector(`[data-place="${left}"]`) ?? byId("/photos");
  card.focus({ preventScroll: true });
  card.scrollIntoView({ block: "nearest" });
}

function goTo(to) {
  const part = byId(to.slice(1));
  if (!part) return;
  part.scrollIntoView();
  part.focus({ preventScroll: true });
}

// In a notebook's frame a link would resolve against the notebook's own address.
document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href^='#']");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  if (link.classList.contains("skip")) return byId("main").focus();
  const to = link.getAttribute("href");
  if (location.hash === to) return to.startsWith("#/") ? goTo(to) : follow();
  location.hash = to;
});
window.addEventListener("hashchange", follow);

function setUpTables() {
  for (const name of ["confusions", "classes"]) if (byId(name)) sortable(byId(name), byId(`${name}-sorted`));
  for (const canvas of document.querySelectorAll("canvas[data-mean]"))
    lazily(canvas, () => drawMean(canvas, Number(canvas.dataset.mean), canvas.dataset.region));
  for (const link of document.querySelectorAll(".examples a")) {
    const i = placeOf.get(link.dataset.photo);
    link.href = photoAddress(i);
    link.append(heatedCanvas(i, DATA.labelled ? "true" : "predicted", { role: "img", "aria-label": `Heatmap of ${FIGURES.name[i]}` }, { opacity: 0.5 }));
  }
}

setUpGallery();
setUpTables();
follow();
document.documentElement.dataset.ready = "true";
