// The step that the slider is at: heatmaps over the photos, what was predicted, filter patterns, marks in the charts.

const DATA = JSON.parse(document.getElementById("data").textContent);
const PLACES = JSON.parse(document.getElementById("places").textContent);
const slider = document.getElementById("step"), play = document.getElementById("play"), now = document.getElementById("now");
const cards = [...document.querySelectorAll(".card")];
const percent = (share) => (share === null ? "not finite" : `${(100 * share).toFixed(1)} %`);

const pictures = DATA.photos.map((photo) => {
  const image = new Image();
  image.src = photo.picture;
  return image.decode().then(() => image);
});

/** A map as a canvas of its own few pixels, in which the value is how opaque the tint is; enlarged, it is interpolated. */
function tinted(map, scale) {
  const canvas = new OffscreenCanvas(map.width, map.height), context = canvas.getContext("2d");
  const pixels = context.createImageData(map.width, map.height), values = atob(map.values);
  for (let i = 0; i < values.length; i++) {
    pixels.data.set(DATA.tint, 4 * i);
    pixels.data[4 * i + 3] = values.charCodeAt(i) * scale * DATA.densest;
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

/** Draw a photo in grey with its map over the part that the network sees. */
async function drawHeat(place, step, shared) {
  const photo = DATA.photos[place], image = await pictures[place];
  if (step !== Number(slider.value)) return; // the slider has moved on meanwhile
  const canvas = cards[place].querySelector("canvas"), context = canvas.getContext("2d");
  const { width, height } = canvas, [left, top, right, bottom] = photo.view, map = photo.maps[step];
  context.filter = "grayscale(1)";
  context.drawImage(image, 0, 0, width, height);
  context.filter = "none";
  context.imageSmoothingQuality = "high";
  const large = tinted(map, shared ? map.share : 1);
  context.drawImage(large, left * width, top * height, (right - left) * width, (bottom - top) * height);
}

function tellPhoto(place, step) {
  const photo = DATA.photos[place], card = cards[place], same = photo.classes[step] === photo.predicted[step];
  const share = percent(photo.shares[step]), other = card.querySelector(".other");
  card.querySelector(".class").textContent = photo.classes[step];
  card.querySelector(".share").textContent = share;
  other.hidden = same || photo.confidence[step] === null;
  other.querySelector("bdi").textContent = photo.predicted[step];
  other.querySelector("span").textContent = percent(photo.confidence[step]);
  card.querySelector("canvas").setAttribute("aria-label", `${photo.name}: evidence for ${photo.classes[step]} (${share}) at step ${DATA.steps[step].step}`);
}

function tellPatterns(step) {
  document.querySelectorAll(".pattern img").forEach((image, place) => {
    const { layer, channels, pictures: of } = DATA.patterns[place];
    image.hidden = of[step] === null;
    if (of[step] !== null) image.src = of[step];
    image.alt = `${layer}${channels.length ? `, channels ${channels.join(", ")}` : ", first filters"} at step ${DATA.steps[step].step}`;
  });
}

async function show() {
  const root = document.documentElement, step = Number(slider.value), { step: number, loss, trouble } = DATA.steps[step];
  root.dataset.pending = "1";
  const words = [`step ${number.toLocaleString("en")}`, loss, trouble === null ? "" : "numbers are not finite"].filter(Boolean).join(", ");
  now.textContent = words;
  slider.setAttribute("aria-valuetext", words);
  for (const line of document.querySelectorAll("svg .now")) {
    line.setAttribute("x1", PLACES[step]);
    line.setAttribute("x2", PLACES[step]);
  }
  for (const count of document.querySelectorAll(".count")) count.textContent = count.dataset.texts.split("|")[step];
  tellPatterns(step);
  const shared = document.getElementById("scale-all").checked;
  await Promise.all(cards.map((_, place) => {
    tellPhoto(place, step);
    return drawHeat(place, step, shared);
  }));
  if (step === Number(slider.value)) root.dataset.pending = "0";
}

let timer = null;

function stop() {
  clearInterval(timer);
  timer = null;
  play.setAttribute("aria-pressed", "false");
  play.textContent = "Play";
}

function start() {
  if (Number(slider.value) === DATA.steps.length - 1) slider.value = 0;
  show();
  play.setAttribute("aria-pressed", "true");
  play.textContent = "Pause";
  timer = setInterval(() => {
    slider.value = Number(slider.value) + 1;
    show();
    if (Number(slider.value) === DATA.steps.length - 1) stop();
  }, 500);
}

/** The address has the number of the step: `#/step/400`. */
function follow() {
  const asked = /^#\/step\/(\d+)$/.exec(location.hash);
  const place = asked ? DATA.steps.findIndex(({ step }) => step === Number(asked[1])) : -1;
  if (place >= 0) slider.value = place;
  show();
}

play.addEventListener("click", () => (timer === null ? start() : stop()));
slider.addEventListener("input", () => {
  if (timer !== null) stop();
  show();
});
slider.addEventListener("change", () => history.replaceState(null, "", `#/step/${DATA.steps[Number(slider.value)].step}`));
for (const choice of document.querySelectorAll("input[name=scale]")) choice.addEventListener("change", show);
window.addEventListener("hashchange", follow);
follow();
document.documentElement.dataset.ready = "true";
