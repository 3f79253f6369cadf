"use strict";
// Progressive enhancement: sortable columns, a readout under the pointer in a confusion matrix, and enlarged pictures.
// The page is readable without it.

function sortBy(table, column, header) {
  const body = table.tBodies[0];
  const numeric = header.dataset.sort === "number";
  const before = header.getAttribute("aria-sort");
  const descending = before ? before === "ascending" : numeric;
  for (const other of table.tHead.querySelectorAll("[aria-sort]")) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const keyed = Array.from(body.rows, (row) => {
    const cell = row.cells[column];
    const text = cell.dataset.value ?? cell.textContent.trim();
    return { row, key: numeric ? parseFloat(text) : text };
  });
  keyed.sort((a, b) => {
    if (!numeric) return (descending ? -1 : 1) * a.key.localeCompare(b.key);
    // Rows without a number come last in both directions.
    if (Number.isNaN(a.key) || Number.isNaN(b.key)) return Number.isNaN(a.key) - Number.isNaN(b.key);
    return descending ? b.key - a.key : a.key - b.key;
  });
  body.append(...keyed.map((entry) => entry.row));
}

for (const table of document.querySelectorAll("table.sortable")) {
  const headers = table.tHead.rows[table.tHead.rows.length - 1].cells;
  Array.from(headers).forEach((header, column) => {
    if (!header.dataset.sort) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => sortBy(table, column, header));
  });
}

for (const table of document.querySelectorAll("table.confusion")) {
  const readout = document.getElementById(table.dataset.readout);
  table.addEventListener("pointerover", (event) => {
    const cell = event.target.closest("td");
    if (cell) readout.textContent = cell.title;
  });
}

for (const plate of document.querySelectorAll(".plate")) {
  const data = JSON.parse(document.getElementById(plate.dataset.source).textContent);
  const readout = document.getElementById(plate.dataset.readout);
  const image = plate.querySelector("image");
  const cursor = plate.querySelector(".cursor");
  const size = data.names.length;
  const counts = new Map(data.codes.map((code, index) => [code, data.counts[index]]));
  let position = null;
  const show = (row, column) => {
    position = [Math.min(size - 1, Math.max(0, row)), Math.min(size - 1, Math.max(0, column))];
    [row, column] = position;
    const pixels = counts.get(row * size + column) ?? 0;
    const percent = data.totals[row] ? ((100 * pixels) / data.totals[row]).toFixed(2) : "0.00";
    readout.textContent = `${data.names[row]} predicted as ${data.names[column]}: ` +
      `${pixels.toLocaleString("en")} px, ${percent} % of ${data.names[row]}`;
    const cell = image.width.baseVal.value / size;
    cursor.setAttribute("x", image.x.baseVal.value + column * cell);
    cursor.setAttribute("y", image.y.baseVal.value + row * cell);
    cursor.removeAttribute("visibility");
  };
  image.addEventListener("pointermove", (event) => {
    const box = image.getBoundingClientRect();
    show(Math.floor((size * (event.clientY - box.top)) / box.height),
      Math.floor((size * (event.clientX - box.left)) / box.width));
  });
  plate.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    show(position ? position[0] + step[0] : 0, position ? position[1] + step[1] : 0);
  });
}

for (const sample of document.querySelectorAll(".sample")) {
  for (const pane of sample.querySelectorAll(".pane")) {
    const toggle = () => {
      const own = sample.querySelector(`input[value="${pane.dataset.pane}"]`);
      const chosen = own.checked ? sample.querySelector('input[value="all"]') : own;
      chosen.checked = true;
    };
    pane.tabIndex = 0;
    pane.setAttribute("role", "button");
    pane.addEventListener("click", toggle);
    pane.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      toggle();
    });
  }
}
