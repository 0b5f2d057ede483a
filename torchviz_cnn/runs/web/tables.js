// Tables that are sorted by the column whose head is chosen: the better values first, then the other way round.

/** The value by which a row is sorted: the number in `data-value` of its cell, null for none, or text in a column without numbers. */
function cellValue(row, place, numeric) {
  const cell = row.cells[place];
  if (!numeric) return cell.textContent.trim();
  return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
}

const compared = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);

/** Make the heads of a table that hold a button sort it; `data-better="higher"` begins with the highest value. `status` is told. */
function sortable(table, status) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const sortBy = (place) => {
    const head = heads[place];
    const usual = head.dataset.better === "higher" ? "descending" : "ascending";
    const other = usual === "ascending" ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === usual ? other : usual;
    for (const one of heads) if (one.querySelector("button")) one.setAttribute("aria-sort", one === head ? order : "none");
    const numeric = [...body.rows].some((row) => row.cells[place].dataset.value !== undefined);
    const rows = [...body.rows].map((row) => [row, cellValue(row, place, numeric)]);
    const known = rows.filter(([, value]) => value !== null);
    known.sort(([, a], [, b]) => (order === "ascending" ? compared(a, b) : compared(b, a)));
    body.append(...[...known, ...rows.filter(([, value]) => value === null)].map(([row]) => row)); // dashes stay last
    status.textContent = `Sorted by ${head.querySelector("button").textContent}, ${order}`;
  };
  heads.forEach((head, place) => {
    head.querySelector("button")?.addEventListener("click", () => sortBy(place));
  });
}
