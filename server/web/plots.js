// Line plots as SVG, and tables whose cells are shaded, in the page's own colours. Both have their numbers in words.

import { element } from "./parts.js";

const NS = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, LEFT, BOTTOM, TOP] = [280, 104, 34, 16, 8];

function shape(name, attributes, text) {
  const made = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

export const short = (value) =>
  value === null || value === undefined ? "–"
  : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en")
  : String(Number(value.toPrecision(3)));

/** A plot of one line; `points` are numbers or null, `ends` what stands below the first and last. The newest stands large
 * beside the label where `shown` says so. */
export function plot(label, points, ends, shown = "") {
  const known = points.filter((value) => value !== null);
  const top = Math.max(...known, 0) || 1;
  const x = (index) => LEFT + (index * (WIDTH - LEFT - 6)) / Math.max(points.length - 1, 1);
  const y = (value) => TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM);
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", class: "plot" });
  svg.append(shape("title", {}, `${label}: from ${short(known[0])} to ${short(known.at(-1))}`));
  for (const share of [0, 0.5, 1]) {
    const height = y(share * top);
    svg.append(shape("line", { x1: LEFT, x2: WIDTH - 6, y1: height, y2: height, class: "grid" }));
    svg.append(shape("text", { x: LEFT - 5, y: height + 3.5, "text-anchor": "end" }, short(share * top)));
  }
  svg.append(...lines(points, x, y));
  const [first, last] = ends;
  svg.append(shape("text", { x: LEFT, y: HEIGHT - 2 }, first));
  svg.append(shape("text", { x: WIDTH - 6, y: HEIGHT - 2, "text-anchor": "end" }, last));
  const figure = document.createElement("figure");
  const caption = element("figcaption", label);
  if (shown) caption.append(element("strong", shown));
  figure.append(caption, svg);
  return figure;
}

function lines(points, x, y) {
  const drawn = [];
  let path = "";
  let whole = points.length > 1;
  points.forEach((value, index) => {
    if (value === null) return (whole = false);
    path += `${path && points[index - 1] !== null ? "L" : "M"}${x(index)} ${y(value)}`;
    if (points.length <= 24) drawn.push(shape("circle", { cx: x(index), cy: y(value), r: 2.5 }));
  });
  drawn.push(shape("path", { d: path, class: "line" }));
  if (whole) {
    const below = `${path}L${x(points.length - 1)} ${y(0)}L${x(0)} ${y(0)}Z`;
    drawn.unshift(shape("path", { d: below, class: "area" }));
  }
  return drawn;
}

/** Fill `table` with numbers, the greater the darker; `rows` are [title, [number or null for each column]]. */
export function heat(table, corner, columns, rows) {
  const head = document.createElement("tr");
  head.append(headCell(corner, "col"), ...columns.map((column) => headCell(column, "col")));
  const top = Math.max(...rows.flatMap(([, numbers]) => numbers), 0) || 1;
  const body = rows.map(([title, numbers]) => {
    const row = document.createElement("tr");
    row.append(headCell(title, "row"), ...numbers.map((number) => shaded(number, top)));
    return row;
  });
  table.replaceChildren(document.createElement("thead"), document.createElement("tbody"));
  table.tHead.append(head);
  table.tBodies[0].append(...body);
}

function headCell(text, scope) {
  const made = element("th", text);
  made.scope = scope;
  return made;
}

function shaded(number, top) {
  const made = element("td", short(number));
  if (number !== null) made.style.setProperty("--share", String(number / top));
  return made;
}
