// Charts of a column's distribution, and the table of a clip's scores. A click on a part of a chart calls `narrow` with
// an SQL condition.

import { element } from "./elements.js";

function svg(tag, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}
const short = (value) => (value === null ? "–" : Number.isInteger(value) ? value.toLocaleString("en") : Number(value.toPrecision(3)).toString());
export function histogram(column, data, narrow) {
  const bins = data.kept.length, width = 360 / bins, step = (data.high - data.low) / bins;
  const drawing = svg("svg", { viewBox: "0 0 360 100", preserveAspectRatio: "none", role: "img", "aria-label": `Histogram of ${column}` });
  data.kept.forEach((kept, i) => {
    const rejected = data.rejected[i], x = i * width + 0.5, low = data.low + i * step;
    if (rejected) drawing.append(svg("rect", { class: "drop", x, width: width - 1, y: 100 - (kept + rejected) * 96, height: rejected * 96 }));
    if (kept) drawing.append(svg("rect", { class: "keep", x, width: width - 1, y: 100 - kept * 96, height: kept * 96 }));
    const hit = svg("rect", { class: "hit", x: i * width, width, y: 0, height: 100 });
    hit.append(svg("title", {}));
    hit.firstChild.textContent = `${short(low)} to ${short(low + step)}: click to filter`;
    const ends = [i > 0 && `${column} >= ${Number(low.toPrecision(6))}`, i < bins - 1 && `${column} < ${Number((low + step).toPrecision(6))}`].filter(Boolean);
    hit.addEventListener("click", () => narrow(ends.join(" AND ")));
    drawing.append(hit);
  });
  for (const line of data.lines) drawing.append(svg("line", { x1: line.x * 360, x2: line.x * 360, y1: 0, y2: 100, "vector-effect": "non-scaling-stroke" }));
  const axis = element("div", "axis"), limits = data.lines.map((line) => `${line.side} ${short(line.value)}`).join(", ");
  axis.append(element("span", "", short(data.low)), element("span", "", `median ${short(data.median)}${limits ? `; ${limits}` : ""}${data.missing ? `; ${data.missing.toLocaleString("en")} without` : ""}`), element("span", "", short(data.high)));
  return [drawing, axis];
}
function bars(rows, narrow) {
  const box = element("div", "bars");
  for (const { label, share, lost, text, condition } of rows) {
    const name = element("button", "", label), bar = element("span", "bar"), value = element("i"), drop = element("i", "drop");
    name.type = "button";
    name.title = label;
    if (condition) name.addEventListener("click", () => narrow(condition));
    else name.disabled = true;
    value.style.width = `${share * 100}%`;
    drop.style.width = `${(lost || 0) * 100}%`;
    bar.append(value, drop);
    box.append(name, bar, element("span", "count", text));
  }
  return box;
}
const quoted = (text) => `'${text.replaceAll("'", "''")}'`;
export function funnel(data, narrow) {
  const all = Math.max(1, data.total);
  const rows = data.steps.map((step) => ({ label: step.label, share: step.remaining / all, lost: step.removed / all, text: `−${step.removed.toLocaleString("en")} → ${step.remaining.toLocaleString("en")}`, condition: `list_contains(rejected_by, ${quoted(step.label)})` }));
  return [bars([{ label: "found", share: 1, text: data.total.toLocaleString("en") }, ...rows], narrow)];
}
export function labels(column, type, data, narrow) {
  const most = Math.max(1, ...data.bars.map(([, number]) => number));
  const condition = (label) => (type === "list" ? `list_contains(${column}, ${quoted(label)})` : label === "None" ? `${column} IS NULL` : type === "yes or no" ? `${column} = ${label.toLowerCase()}` : `${column} = ${quoted(label)}`);
  const shown = bars(data.bars.map(([label, number]) => ({ label: label === "None" ? "none" : label, share: number / most, text: number.toLocaleString("en"), condition: condition(label) })), narrow);
  return data.values > data.bars.length ? [shown, element("p", "soft", `the ${data.bars.length} most frequent of ${data.values.toLocaleString("en")}`)] : [shown];
}

// Rows of a table: a score, its value and bounds.
export function scoreRows(scores) {
  return scores.map((score) => {
    const row = element("tr", score.fails ? "fails" : ""), name = element("th", "", score.name), value = element("td", "", score.text);
    name.scope = "row";
    const limits = ["min", "max"].filter((side) => score.bounds[side] !== null && score.bounds[side] !== undefined).map((side) => `${side} ${score.bounds[side]}`);
    if (limits.length) value.append(element("br"), element("small", "", limits.join(", ")));
    row.append(name, value);
    return row;
  });
}
