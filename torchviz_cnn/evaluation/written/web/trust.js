// Sorts the table by the column whose head is chosen: the better values first, then the other way round.
const heads = [...document.querySelectorAll("#table thead th")];
const body = document.querySelector("#table tbody");
const status = document.querySelector("#sorted");

function cellValue(row, place) {
  const cell = row.cells[place];
  if (place === 0) return cell.textContent.trim();
  return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
}

function compared(a, b) {
  return typeof a === "string" ? a.localeCompare(b) : a - b;
}

function sortBy(place) {
  const head = heads[place];
  const usual = head.dataset.better === "higher" ? "descending" : "ascending";
  const other = usual === "ascending" ? "descending" : "ascending";
  const order = head.getAttribute("aria-sort") === usual ? other : usual;
  for (const one of heads) one.setAttribute("aria-sort", one === head ? order : "none");
  const rows = [...body.rows].map((row) => [row, cellValue(row, place)]);
  const known = rows.filter(([, value]) => value !== null);
  known.sort(([, a], [, b]) => (order === "ascending" ? compared(a, b) : compared(b, a)));
  body.append(...[...known, ...rows.filter(([, value]) => value === null)].map(([row]) => row)); // dashes stay last
  status.textContent = `Sorted by ${head.querySelector("button").textContent}, ${order}`;
}

heads.forEach((head, place) => {
  head.querySelector("button").addEventListener("click", () => sortBy(place));
});
document.documentElement.dataset.pending = "0";
document.documentElement.dataset.ready = "";
