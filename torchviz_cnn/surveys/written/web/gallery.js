// The photos as cards: sorted, filtered, searched, and walked through by the arrow keys.

const PAGE = 48;
const SORTS = [
  ["loss", "loss", true], ["confidence", "confidence", true], ["margin", "margin", false],
  ["border", "border share", true], ["corner", "corner share", true], ["inside", "object share", false], ["name", "name", false],
].filter(([key]) => FIGURES[key]);
const state = { sort: SORTS[0][0], down: SORTS[0][2], outcome: "all", true: "all", predicted: "all", search: "", heat: "predicted", cards: PAGE };
if (!DATA.labelled) Object.assign(state, { sort: "margin", down: false });

const WORDS = FIGURES.name.map((name, i) =>
  [name, className(FIGURES.predicted[i]), DATA.labelled ? className(FIGURES.true[i]) : ""].join("\n").toLowerCase());

const OUTCOMES = {
  all: () => true,
  heatmap: isShown,
  ...(DATA.labelled ? { wrong: isWrong, right: (i) => !isWrong(i) } : {}),
  ...Object.fromEntries(DATA.reasons.map((reason) => [`reason ${reason}`, (i) => isShown(i) && DATA.photos[i].reasons.includes(reason)])),
};
const OUTCOME_WORDS = { all: "all photos", heatmap: "those with a heatmap", wrong: "wrong predictions", right: "right predictions" };

/** The places of the photos that match the filters, in their order; null stands last. */
function ordered(filtered = true) {
  const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
  const matches = (i) => OUTCOMES[state.outcome](i)
    && (state.true === "all" || FIGURES.true[i] === Number(state.true))
    && (state.predicted === "all" || FIGURES.predicted[i] === Number(state.predicted))
    && words.every((word) => WORDS[i].includes(word));
  const values = FIGURES[state.sort], sign = state.down ? -1 : 1;
  const places = Array.from({ length: COUNT }, (_, i) => i).filter((i) => !filtered || matches(i));
  const by = (a, b) => (state.sort === "name" ? values[a].localeCompare(values[b], undefined, { numeric: true }) : values[a] - values[b]);
  return places.sort((a, b) => (values[a] === null) - (values[b] === null) || (values[a] === null ? 0 : sign * by(a, b)) || a - b);
}

/** The photos as they stand in the gallery: those with a picture, then the others. */
function sequence(filtered = true) {
  const places = ordered(filtered);
  return [...places.filter(isPictured), ...places.filter((i) => !isPictured(i))];
}

/** The picture of a card: the photo with a heatmap, or the small photo alone. */
function pictureOf(i) {
  if (!isShown(i)) return make("img", { src: pictureUrl(DATA.small[i]), alt: "", decoding: "async" });
  return heatedCanvas(i, state.heat, { "aria-hidden": "true" });
}

function card(i) {
  const figures = [`confidence ${likelihood(FIGURES.confidence[i])}`];
  if (DATA.labelled) figures.push(`loss ${number(FIGURES.loss[i])}`);
  if (FIGURES[state.sort] && !["loss", "confidence", "name"].includes(state.sort))
    figures.push(`${SORTS.find(([key]) => key === state.sort)[1]} ${state.sort === "margin" ? number(FIGURES.margin[i]) : percent(FIGURES[state.sort][i])}`);
  return make("li", {}, make("a", { class: isWrong(i) ? "card wrong" : "card", href: photoAddress(i), "data-place": i }, pictureOf(i),
    make("span", { class: "text" },
      make("span", { class: "says" }, named(className(FIGURES.predicted[i]))),
      DATA.labelled ? make("span", { class: "was" }, ...(isWrong(i) ? ["labelled ", make("b", {}, named(className(FIGURES.true[i])))] : ["right"])) : null,
      make("small", {}, figures.join(", ")),
      make("small", {}, named(FIGURES.name[i])),
      make("small", {}, isShown(i) ? DATA.photos[i].reasons.join(", ") : "no heatmap"))));
}

function showGallery() {
  const places = ordered(), shown = places.filter(isPictured), others = places.filter((i) => !isPictured(i));
  const cards = shown.slice(0, state.cards).map(card);
  byId("cards").replaceChildren(...cards);
  if (!cards.length) byId("cards").append(make("li", { class: "none" }, others.length ? "The page has no pictures of these photos." : "No photo matches."));
  byId("count").textContent = `${places.length === COUNT ? "" : `${places.length} of `}${COUNT} photos, ${places.filter(isShown).length} with heatmaps, which vanish under the pointer${DATA.left ? `; ${DATA.left} more are in predictions.csv alone` : ""}`;
  byId("more").hidden = shown.length <= state.cards;
  byId("more").textContent = `Show ${Math.min(PAGE, shown.length - state.cards)} more`;
  showOthers(others);
  const { outcome, search } = state;
  byId("clear").hidden = outcome === "all" && state.true === "all" && state.predicted === "all" && !search;
  const order = SORTS.find(([key]) => key === state.sort)[1];
  byId("turn").textContent = state.down ? "↓" : "↑";
  byId("turn").title = state.down ? `highest ${order} first` : `lowest ${order} first`;
}

/** The photos without pictures, as lines. */
function showOthers(places) {
  const most = 300, box = byId("others");
  box.hidden = !places.length;
  box.querySelector("summary").textContent = `${places.length} ${places.length === 1 ? "photo" : "photos"} without a picture${places.length > most ? `, the first ${most}` : ""}`;
  const fill = () => box.querySelector("ul").replaceChildren(...places.slice(0, most).map((i) => make("li", {},
    make("a", { href: photoAddress(i) }, named(FIGURES.name[i])), ": predicted ", named(className(FIGURES.predicted[i])),
    isWrong(i) ? ", labelled " : null, isWrong(i) ? named(className(FIGURES.true[i])) : null, `, confidence ${likelihood(FIGURES.confidence[i])}`)));
  box.ontoggle = () => { if (box.open) fill(); };
  if (box.open) fill();
}

/** Change what is shown, and the controls with it. */
function choose(changes) {
  Object.assign(state, { cards: PAGE }, changes);
  for (const key of ["sort", "outcome", "true", "predicted", "search", "heat"]) {
    const control = byId(key);
    if (control && control.value !== state[key]) control.value = state[key];
  }
  showGallery();
}

function options(select, several, value) {
  select.replaceChildren(...several.map(([key, label]) => make("option", { value: key }, label)));
  select.value = value;
}

function setUpGallery() {
  const classesOf = (column) => [...new Set(column)].map((c) => [String(c), className(c)]).sort((a, b) => a[1].localeCompare(b[1]));
  options(byId("sort"), SORTS, state.sort);
  options(byId("outcome"), Object.keys(OUTCOMES).map((key) => [key, OUTCOME_WORDS[key] ?? key.replace("reason ", "")]), state.outcome);
  if (DATA.labelled) options(byId("true"), [["all", "all"], ...classesOf(FIGURES.true)], "all");
  options(byId("predicted"), [["all", "all"], ...classesOf(FIGURES.predicted)], "all");
  const kinds = [["predicted", "the predicted class"], ["true", "the true class"], ["difference", "the difference"], ["none", "no class"]];
  options(byId("heat"), kinds.filter(([key]) => DATA.labelled || ["predicted", "none"].includes(key)), state.heat);
  for (const key of ["outcome", "true", "predicted", "heat"]) byId(key)?.addEventListener("change", (event) => choose({ [key]: event.target.value }));
  byId("sort").addEventListener("change", (event) => choose({ sort: event.target.value, down: SORTS.find(([key]) => key === event.target.value)[2] }));
  byId("turn").addEventListener("click", () => choose({ down: !state.down }));
  byId("search").addEventListener("input", (event) => choose({ search: event.target.value }));
  byId("clear").addEventListener("click", () => { choose({ outcome: "all", true: "all", predicted: "all", search: "" }); byId("search").focus(); });
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("more").addEventListener("click", () => {
    const first = state.cards;
    state.cards += PAGE;
    showGallery();
    byId("cards").children[first]?.firstChild.focus();
  });
  byId("cards").addEventListener("keydown", walk);
  for (const row of document.querySelectorAll("tbody tr:has(button)")) row.addEventListener("click", (event) => {
    if (event.target.tagName !== "BUTTON") row.querySelector("button").click();
  });
  for (const button of document.querySelectorAll("button[data-class], button[data-true]")) button.addEventListener("click", () => {
    const { class: own, true: truth, predicted, sort } = button.dataset;
    const filters = truth ? { true: truth, predicted } : DATA.labelled ? { true: own, predicted: "all" } : { predicted: own };
    choose({ outcome: "all", search: "", ...filters, ...(sort ? { sort, down: true } : {}) });
    goTo("#/photos");
  });
  showGallery();
}

/** Arrow keys go from card to card, and by rows. */
function walk(event) {
  const links = [...byId("cards").querySelectorAll("a")], at = links.indexOf(document.activeElement);
  if (at < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
  const across = links.filter((link) => link.getBoundingClientRect().top === links[0].getBoundingClientRect().top).length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across, Home: -at, End: links.length - 1 - at }[event.key];
  if (step === undefined) return;
  event.preventDefault();
  links[Math.min(Math.max(at + step, 0), links.length - 1)].focus();
}
