"use strict";
// Sorts and filters tables, draws curves, and shows records. Everything it needs is in the page.

const data = JSON.parse(document.getElementById("data").textContent);
const recordOf = new Map(data.records.map(({ name, record }) => [name, record]));
const rowOf = new Map(data.rows.map((row) => [row.name, row]));

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function drawn(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// ---- tables

const text = (row, column) => row.cells[column].textContent.trim();
const number = (cell) => parseFloat(cell.replaceAll(",", "").replace("−", "-").replace(/^[<≥]\s*/, ""));

function compareBy(rows, column) {
  const cells = rows.map((row) => text(row, column)).filter((cell) => cell);
  const numeric = cells.filter((cell) => !Number.isNaN(number(cell))).length * 2 > cells.length;
  if (!numeric) return (one, other) => text(one, column).localeCompare(text(other, column), "en", { numeric: true });
  return (one, other) => number(text(one, column)) - number(text(other, column));
}

function sortBy(table, column) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells], head = heads[column];
  const descending = head.getAttribute("aria-sort") === "ascending";
  heads.forEach((cell) => cell.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const rows = [...body.rows], compare = compareBy(rows, column);
  const missing = (row) => text(row, column) === "" || Number.isNaN(compare(row, row));
  const known = rows.filter((row) => !missing(row)).sort((a, b) => (descending ? -1 : 1) * compare(a, b));
  body.append(...known, ...rows.filter(missing)); // what has no value is last either way
}

function makeSortable(table) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    if (!head.textContent) head.setAttribute("aria-label", "number");
    const button = element("button", { type: "button" }, ...head.childNodes);
    if (!button.textContent) button.setAttribute("aria-label", "sort by this column");
    button.addEventListener("click", () => sortBy(table, column));
    head.append(button);
  });
}

function wrapLongColumns(table) {
  const rows = [...table.tBodies[0].rows];
  for (let column = 0; column < rows[0].cells.length; column++) {
    if (rows.some((row) => text(row, column).length > 75)) rows.forEach((row) => row.cells[column].classList.add("long"));
  }
}

function makeFiltered(table) {
  const rows = [...table.tBodies[0].rows], name = table.caption.textContent;
  const input = element("input", { type: "search", placeholder: "words in any column", "aria-label": `Filter: ${name}` });
  const count = element("span", { role: "status" });
  const apply = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    rows.forEach((row) => { row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word)); });
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
    table.dispatchEvent(new Event("filtered"));
  };
  input.addEventListener("input", apply);
  table.closest(".scroll").before(element("div", { class: "tools" }, element("label", {}, "Filter ", input), count));
  apply();
}

// ---- curves

const percent = (counts) => (counts && counts.images ? (100 * counts.correct) / counts.images : null);
const QUANTITIES = {
  "test accuracy (%)": (entry) => percent(entry.test),
  "training accuracy (%)": (entry) => percent(entry.train),
  "validation accuracy (%)": (entry) => percent(entry.validation),
  "test loss": (entry) => entry.test?.loss,
  "training loss": (entry) => entry.train?.loss,
  "gate at P2": (entry) => entry.gates?.P2,
  "gate at P3": (entry) => entry.gates?.P3,
  "training seconds per epoch": (entry, timing) => timing?.train_seconds,
};

const seriesOf = (record, name, quantity) => ({
  name,
  points: record.results.epochs
    .map((entry, i) => [i + 1, QUANTITIES[quantity](entry, record.timings.epochs[i])])
    .filter(([, value]) => typeof value === "number"),
});

function runsOf(row, quantity) {
  return row.records.map((i) => {
    const record = data.records[i].record;
    return seriesOf(record, `${row.label}, seed ${record.run.seed}`, quantity);
  }).filter((series) => series.points.length);
}

function ticks(low, high, count) {
  const raw = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high + step / 1e6; i++) found.push(+(i * step).toPrecision(12));
  return found;
}

const shown = (value) => (Math.abs(value) < 1 ? value.toFixed(4) : value.toFixed(2));

// One chart: lines of [epoch, value], read by pointer or by arrow keys. Returns a function that draws other lines.
function chart(place, label) {
  const H = 320, left = 56, right = 16, top = 14, bottom = 40;
  let W = 760;
  const output = element("output", { "aria-live": "polite" });
  const picture = drawn("svg", { tabindex: 0, role: "application", "aria-label": `${label}; arrow keys read values` });
  place.append(picture, output);
  const hint = "Point at a line, or focus the chart and use the arrow keys, to read its values.";
  let lines = [], x, y, chosen = null;

  function choose(line, point) {
    chosen = line === null ? null : [line, point];
    picture.querySelectorAll(".series").forEach((path, i) => path.classList.toggle("chosen", i === line));
    picture.classList.toggle("dim", chosen !== null);
    picture.querySelector("circle")?.remove();
    output.textContent = lines.length ? hint : "Nothing to draw: no run shown above has this quantity.";
    if (chosen === null) return;
    const [epoch, value] = lines[line].points[point];
    picture.append(drawn("circle", { cx: x(epoch), cy: y(value), r: 5, class: `k${line % 8}` }));
    output.textContent = `${lines[line].name}, epoch ${epoch}: ${shown(value)}`;
  }

  function draw(series, quantity) {
    lines = series;
    W = Math.min(760, place.clientWidth || 760); // on a phone the type keeps its size
    picture.setAttribute("viewBox", `0 0 ${W} ${H}`);
    picture.replaceChildren();
    const epochs = lines.flatMap(({ points }) => points.map(([epoch]) => epoch));
    const values = lines.flatMap(({ points }) => points.map(([, value]) => value));
    if (!lines.length) return choose(null);
    const last = Math.max(2, ...epochs), low = Math.min(...values), high = Math.max(...values), pad = (high - low) * 0.06 || 1;
    x = (epoch) => left + ((epoch - 1) / (last - 1)) * (W - left - right);
    y = (value) => H - bottom - ((value - low + pad) / (high - low + 2 * pad)) * (H - top - bottom);
    for (const value of ticks(low - pad, high + pad, 5)) {
      picture.append(drawn("line", { x1: left, x2: W - right, y1: y(value), y2: y(value), class: "grid" }));
      picture.append(drawn("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, String(value)));
    }
    for (const epoch of ticks(1, last, 8).filter((epoch) => Number.isInteger(epoch) && epoch >= 1)) {
      picture.append(drawn("text", { x: x(epoch), y: H - bottom + 18, "text-anchor": "middle" }, String(epoch)));
    }
    picture.append(drawn("text", { x: (left + W - right) / 2, y: H - 6, "text-anchor": "middle" }, `epoch; ${quantity}`));
    lines.forEach(({ points }, i) => {
      const path = points.map(([epoch, value], j) => `${j ? "L" : "M"}${x(epoch).toFixed(1)} ${y(value).toFixed(1)}`).join("");
      picture.append(drawn("path", { d: points.length > 1 ? path : `${path}h0.1`, class: `series k${i % 8}`, "stroke-linecap": "round" }));
    });
    choose(null);
  }

  function nearest(event) {
    const box = picture.getBoundingClientRect(), scale = W / box.width;
    const px = (event.clientX - box.left) * scale, py = (event.clientY - box.top) * scale;
    let best = [Infinity];
    lines.forEach(({ points }, i) => points.forEach(([epoch, value], j) => {
      const distance = (2 * (x(epoch) - px)) ** 2 + (y(value) - py) ** 2; // the epoch first, then the line
      if (distance < best[0]) best = [distance, i, j];
    }));
    if (lines.length) choose(best[1], best[2]);
  }

  function key(event) {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!move || !lines.length) return;
    event.preventDefault();
    const line = chosen ? (chosen[0] + move[0] + lines.length) % lines.length : 0;
    const count = lines[line].points.length;
    choose(line, chosen ? Math.min(Math.max(chosen[1] + move[1], 0), count - 1) : count - 1);
  }

  picture.addEventListener("pointermove", nearest);
  picture.addEventListener("pointerdown", nearest);
  picture.addEventListener("pointerleave", () => choose(null));
  picture.addEventListener("keydown", key);
  return draw;
}

function quantityChart(place, label, rows) {
  const select = element("select", { "aria-label": `Quantity: ${label}` }, ...Object.keys(QUANTITIES).map((name) => new Option(name)));
  place.replaceChildren(element("div", { class: "tools" }, element("label", {}, "Show ", select)));
  const draw = chart(place, label);
  const update = () => draw(rows().flatMap((row) => runsOf(row, select.value)), select.value);
  select.addEventListener("change", update);
  update();
  return update;
}

// The curves of a profile are those of the rows that its table shows.
function profileChart(place) {
  const table = place.closest("section").querySelector("table");
  const row = (line) => rowOf.get(decodeURIComponent(line.querySelector("a").hash.slice(1)));
  const visible = () => [...table.tBodies[0].rows].filter((line) => !line.hidden).map(row).filter(Boolean);
  table.addEventListener("filtered", quantityChart(place, `Curves of the rows shown above, profile ${place.dataset.profile}`, visible));
}

// ---- records

function view(value) {
  const list = element("dl"), parts = [];
  for (const [name, item] of Object.entries(value)) {
    const inner = item !== null && typeof item === "object" && Object.values(item).some((each) => each !== null && typeof each === "object");
    if (inner || (item !== null && typeof item === "object" && !Array.isArray(item))) {
      parts.push(element("details", {}, element("summary", {}, Array.isArray(value) ? String(+name + 1) : name), view(item)));
    } else {
      list.append(element("dt", {}, name), element("dd", {}, Array.isArray(item) ? item.join(", ") : String(item)));
    }
  }
  const fragment = document.createDocumentFragment();
  if (list.children.length) fragment.append(list);
  fragment.append(...parts);
  return fragment;
}

function fillWhenOpened(details) {
  details.addEventListener("toggle", () => {
    if (details.dataset.filled || !details.open) return;
    details.dataset.filled = "yes";
    if (recordOf.has(details.id)) {
      details.append(view(recordOf.get(details.id)));
      const opened = ["results", "final"]; // what a number is looked up for
      const title = (part) => part.querySelector("summary").textContent;
      details.querySelectorAll("details").forEach((part) => { part.open = opened.includes(title(part)) || title(part.parentElement) === "final"; });
    } else {
      const row = rowOf.get(details.id);
      quantityChart(details.querySelector(".chart"), `Curves of ${row.label}`, () => [row]);
    }
  });
}

function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  for (let around = target; around; around = around.parentElement) if (around.tagName === "DETAILS") around.open = true;
  target.scrollIntoView();
}

// ---- the page

document.querySelectorAll("table.sortable").forEach((table) => { wrapLongColumns(table); makeSortable(table); });
document.querySelectorAll("table.filtered").forEach(makeFiltered);
document.querySelectorAll(".chart[data-profile]").forEach(profileChart);
document.querySelectorAll("details[id]").forEach(fillWhenOpened);
addEventListener("hashchange", openTarget);
openTarget();
