// One photo alone: both heatmaps and their difference with values, the predictions, and the figures.

const photoDialog = byId("photo");
const view = { scale: "own", palette: "jet" };
let currentPhoto = null;

const KINDS = {
  none: () => "Photo",
  predicted: (i) => (DATA.labelled && !isWrong(i) ? "Predicted and true: " : "Predicted: "),
  true: () => "True: ",
  difference: () => "Predicted minus true",
};

function showPhoto(i) {
  currentPhoto = i;
  const title = make("h2", { id: "photo-title", tabindex: "-1" }, named(FIGURES.name[i]));
  const parts = [
    make("header", {}, make("div", {}, title, make("p", {}, ...verdict(i))), steps(i)),
    ...(isShown(i) ? [heatmaps(i)] : withoutHeatmaps(i)),
    make("div", { class: "details" }, predictions(i), figures(i)),
    make("details", { class: "more" }, make("summary", {}, "What these figures mean"), copyOfGlossary()),
    address(i),
  ];
  photoDialog.replaceChildren(make("div", { class: "sheet" }, ...parts));
  if (!photoDialog.open) photoDialog.showModal();
  photoDialog.scrollTop = 0;
  title.focus({ preventScroll: true });
  document.title = `${FIGURES.name[i]}: ${pageTitle}`;
}

/** What the network says, and what the label says. */
function verdict(i) {
  const says = ["The network predicts ", make("strong", {}, named(className(FIGURES.predicted[i]))), ` (${likelihood(FIGURES.confidence[i])}).`];
  if (!DATA.labelled) return says;
  if (!isWrong(i)) return [...says, " That is right."];
  return [...says, " The label is ", make("strong", {}, named(className(FIGURES.true[i]))), ` (${likelihood(FIGURES.chance[i])}).`];
}

/** The photo alone, and why. */
function withoutHeatmaps(i) {
  const picture = i in DATA.small ? make("img", { class: "alone", src: pictureUrl(DATA.small[i]), alt: `Photo ${FIGURES.name[i]}` }) : null;
  return [picture ?? "", make("p", { class: "note" }, "The survey kept no heatmap of this photo. It keeps those of each kind, as highest loss and least certain: a larger k keeps more.")];
}

function steps(i) {
  const all = sequence(), places = all.includes(i) ? all : sequence(false), at = places.indexOf(i);
  const button = (label, name, step) => {
    const to = places[at + step];
    return make("button", { type: "button", class: "round", "aria-label": name, "data-step": step, disabled: to === undefined, onclick: () => { location.hash = photoAddress(to); } }, label);
  };
  return make("div", { class: "buttons" }, button("←", "Previous photo", -1), button("→", "Next photo", 1),
    make("button", { type: "button", class: "round", "aria-label": "Close", onclick: () => closePhoto() }, "×"));
}

/** The photo, both heatmaps, their difference: each with its colour bar, and the values under the pointer. */
function heatmaps(i) {
  const kinds = ["none", "predicted", ...(isWrong(i) ? ["true", "difference"] : [])];
  const readout = make("p", { class: "pointer", "aria-live": "off" }, "Point at a heatmap to read its values.");
  const drawn = new Map(), figures = kinds.map((kind) => viewOfKind(i, kind, drawn));
  const draw = () => Promise.all(figures.map((figure) => figure.draw()));
  const radio = (name, value, label) => {
    const input = make("input", { type: "radio", name, value, onchange: () => { view[name] = value; track(draw()); } });
    input.checked = view[name] === value;
    return make("label", {}, input, ` ${label}`);
  };
  const set = (legend, ...choices) => make("fieldset", {}, make("legend", {}, legend), ...choices);
  const { title, shows, layer } = DATA.method, { width, height } = DATA.photos[i];
  const dimmed = !coversAll(viewOf(DATA.photos[i], width, height), width, height);
  const views = make("div", { class: kinds.length < 3 ? "views two" : "views" }, ...figures.map(({ element }) => element));
  views.addEventListener("pointermove", (event) => pointAt(event, i, drawn, readout));
  track(draw());
  return make("div", {}, views, readout,
    make("div", { class: "below" },
      isWrong(i) ? set("Scale", radio("scale", "own", "each its own"), radio("scale", "shared", "one for both classes")) : null,
      set("Colours", ...["jet", "viridis", "inferno"].map((name) => radio("palette", name, name))),
      make("span", {}, `${title}${layer ? ` at ${layer}` : ""} shows ${shows}.${dimmed ? " The network does not see the dimmed part of the photo." : ""}`)));
}

function viewOfKind(i, kind, drawn) {
  const canvas = make("canvas", { role: "img" }), bar = make("canvas", { "aria-hidden": "true" });
  const ends = [make("span"), make("span"), make("span")];
  const about = make("strong", {}, KINDS[kind](i));
  if (kind === "predicted" || kind === "true") about.append(named(className(FIGURES[kind][i])));
  canvas.setAttribute("aria-label", `${about.textContent} on ${FIGURES.name[i]}`);
  const key = make("div", { class: "key" }, bar, ...ends);
  key.hidden = kind === "none";
  const draw = async () => {
    const [first, second] = DATA.photos[i].high;
    const peak = view.scale === "shared" && kind !== "difference" && isWrong(i) ? Math.max(first, second) : null;
    const done = await drawHeat(canvas, i, kind, { palette: view.palette, peak, opacity: kind === "none" ? 0 : 0.7 });
    if (!done) return;
    drawn.set(kind, done);
    const { heat, peak: top } = done;
    paint(bar, Float32Array.from({ length: 256 }, (_, level) => level), 256, 1, heat.signed ? "seismic" : view.palette);
    const values = heat.signed ? [-top, 0, top] : [0, top / 2, top];
    ends.forEach((end, n) => { end.textContent = number(values[n]); });
    if (kind === "difference") ends[1].textContent = "0, equal";
    if (!top) ends[1].textContent = "no evidence anywhere";
  };
  return { draw, element: make("figure", {}, canvas, make("figcaption", {}, about), key) };
}

/** Say the values of all heatmaps at the place of the pointer. */
function pointAt(event, i, drawn, readout) {
  const canvas = event.target;
  if (canvas.tagName !== "CANVAS" || canvas.closest(".key")) return;
  const box = canvas.getBoundingClientRect(), scale = Math.min(box.width / canvas.width, box.height / canvas.height);
  const x = (event.clientX - box.left - (box.width - scale * canvas.width) / 2) / scale;
  const y = (event.clientY - box.top - (box.height - scale * canvas.height) / 2) / scale;
  const part = viewOf(DATA.photos[i], canvas.width, canvas.height);
  const across = (x - part.x) / part.width, down = (y - part.y) / part.height;
  if (across < 0 || across >= 1 || down < 0 || down >= 1) {
    readout.textContent = "The network does not see this part of the photo.";
    return;
  }
  const words = { predicted: "predicted class", true: "true class", difference: "difference" };
  const said = [...drawn].map(([kind, { heat }]) => `${words[kind]} ${number(valueAt(heat, across, down))}`);
  readout.textContent = `At the pointer: ${said.join(", ")}`;
}

/** The value of a map at a place of 0..1, as it is drawn. */
function valueAt({ values, w, h }, across, down) {
  const [top, bottom, y] = between(down * h - 0.5, h), [left, right, x] = between(across * w - 0.5, w);
  const above = values[top * w + left] * (1 - x) + values[top * w + right] * x;
  return above * (1 - y) + (values[bottom * w + left] * (1 - x) + values[bottom * w + right] * x) * y;
}

function predictions(i) {
  const rows = FIGURES.top[i].map((c, rank) => [c, FIGURES.chances[i][rank]]);
  if (isWrong(i) && !FIGURES.top[i].includes(FIGURES.true[i])) rows.push([FIGURES.true[i], FIGURES.chance[i]]);
  return make("section", {}, make("h3", {}, "Predictions"), make("ol", { class: "bars" }, ...rows.map(([c, share]) => make("li", {},
    make("span", { class: "class" }, named(className(c)), DATA.labelled && c === FIGURES.true[i] ? " (true class)" : null), make("span", { class: "number" }, likelihood(share)),
    make("meter", { min: 0, max: 1, value: share ?? 0, "aria-label": `Probability of ${className(c)}` })))));
}

function figures(i) {
  const rows = [["Confidence", likelihood(FIGURES.confidence[i])], ["Margin", number(FIGURES.margin[i])]];
  if (DATA.labelled) rows.push(["Loss", number(FIGURES.loss[i])], ["Probability of the true class", likelihood(FIGURES.chance[i])]);
  const both = (own, predicted) => (isWrong(i) ? [percent(own), make("small", {}, ` true class, ${percent(predicted)} predicted`)] : [percent(own)]);
  rows.push(["Border share", ...both(FIGURES.border[i], FIGURES.predictedBorder[i])], ["Corner share", ...both(FIGURES.corner[i], FIGURES.predictedCorner[i])]);
  if (DATA.masks) rows.push(["Object share", percent(FIGURES.inside[i])]);
  if (isShown(i)) rows.push(["Shown for", DATA.photos[i].reasons.join(", ")]);
  return make("section", {}, make("h3", {}, "Figures"), make("dl", { class: "numbers" }, ...rows.map(([term, ...what]) => make("div", {}, make("dt", {}, term), make("dd", {}, ...what)))));
}

function copyOfGlossary() {
  const copy = byId("glossary").cloneNode(true);
  copy.removeAttribute("id");
  return copy;
}

function address(i) {
  const link = make("a", { href: photoAddress(i) }, named(decodeURIComponent(photoAddress(i)))), said = make("span", { role: "status" });
  const copy = make("button", { type: "button", class: "plain", onclick: async () => {
    try {
      await navigator.clipboard.writeText(link.href);
      said.textContent = " copied";
    } catch { // without permission, or in a frame
      getSelection().selectAllChildren(link);
      said.textContent = " selected, to be copied";
    }
  } }, "Copy link");
  return make("p", { class: "address" }, "Address of this photo: ", link, " ", copy, said);
}

function closePhoto() {
  if (currentPhoto !== null) location.hash = "#/photos";
}

photoDialog.addEventListener("cancel", (event) => { event.preventDefault(); closePhoto(); });
photoDialog.addEventListener("click", (event) => { if (event.target === photoDialog) closePhoto(); });
photoDialog.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step || event.altKey || event.ctrlKey || event.metaKey || event.target.type === "radio") return;
  event.preventDefault();
  photoDialog.querySelector(`[data-step="${step}"]`).click();
  follow(); // at once: the next key may come before the browser tells of the new address
});
