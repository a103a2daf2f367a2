// The explorer's page, rendered from `state`. Texts from the dataset are inserted as text nodes only, never as HTML.

import { funnel, histogram, labels, scoreRows } from "./charts.js";
import { by, clock, count, duration, element } from "./elements.js";
import { preview, showMedia } from "./media.js";

const PAGE = 60;  // clips

const state = { search: "", label: "", where: "", which: "", sort: "", descending: false, offset: 0 };
let dataset, clips = [], total = 0, selected = -1, detail = null, request = 0, saving = Promise.resolve();

// Server

async function ask(path, options = {}) {
  const response = await fetch(path, options);
  const body = response.headers.get("content-type")?.includes("json") ? await response.json() : { error: await response.text() };
  if (!response.ok) throw new Error(body.error || response.statusText);
  return body;
}
const send = (path, body, type = "application/json") => ask(path, {
  method: "POST", headers: { "x-clipmill-token": dataset.token, "content-type": type }, body: type === "application/json" ? JSON.stringify(body) : body,
});
async function ready(path, isCurrent) {  // ask again while the server reads embeddings, and show its progress
  for (;;) {
    const answer = await ask(path);
    if (!answer.waiting || !isCurrent()) return answer;
    fail(null);
    by("status").textContent = `${answer.waiting} …`;
    await new Promise((resolve) => setTimeout(resolve, 300));
  }
}
function parameters(extra = {}) {
  const conditions = [state.where, state.which].filter(Boolean).map((text) => `(\n${text}\n)`);
  const where = conditions.length > 1 ? conditions.join(" AND ") : state.where || state.which;
  return new URLSearchParams({ where, search: state.search, sort: state.sort, descending: state.descending ? "1" : "0", ...extra });
}
function fail(error) {
  by("error").textContent = error ? error.message : "";
  by("error").hidden = !error;
}

// Results

async function load(then = "first") {
  const number = ++request;
  document.querySelector(".results").classList.add("busy");
  history.replaceState(null, "", `#${new URLSearchParams(Object.entries(state).filter(([name, value]) => value && !(name === "search" && value.startsWith("picture:"))))}`);
  try {
    const began = performance.now();
    if (state.search) by("status").textContent = "searching …";
    const page = await ready(`/api/clips?${parameters({ offset: state.offset, limit: PAGE })}`, () => number === request);
    if (number !== request) return;
    fail(null);
    ({ clips, total } = page);
    showStatus(page, (performance.now() - began) / 1000);
    showGrid();
    drawChart();
    select(clips.length === 0 ? -1 : then === "last" ? clips.length - 1 : then === "none" ? -1 : 0, then !== "first");
  } catch (error) {
    if (number !== request) return;
    by("status").textContent = "";
    fail(error);
  } finally {
    if (number === request) document.querySelector(".results").classList.remove("busy");
  }
}
function showStatus(page, seconds) {
  const status = by("status");
  status.replaceChildren(element("b", "", count(page.total, "clip")), `, ${page.kept.toLocaleString("en")} kept, ${duration(page.hours)}`);
  status.title = `${seconds.toFixed(2)} s`;
  by("place").textContent = page.total ? `${(state.offset + 1).toLocaleString("en")}–${(state.offset + page.clips.length).toLocaleString("en")}` : "";
  by("previous").disabled = state.offset === 0;
  by("next").disabled = state.offset + PAGE >= page.total;
  by("empty").hidden = page.total > 0;
}
function showGrid() {
  by("grid").replaceChildren(...clips.map(card));
  document.querySelector(".results").scrollTop = 0;
}
const outcome = (clip) => (clip.decision ? clip.decision === "keep" : clip.keep);
function valueOf(clip) {
  const value = state.sort && state.sort !== "similarity" ? clip.value : clip.similarity;
  if (typeof value === "number") return Number.isInteger(value) ? value.toLocaleString("en") : value.toPrecision(3);
  return value === null || value === undefined ? "" : String(value);
}
function card(clip, index) {
  const item = element("li", `card ${outcome(clip) ? "" : "out"}`);
  const media = element("div", "media"), picture = element("img"), words = element("div", "words");
  Object.assign(picture, { src: `/thumbnails/${clip.id}`, alt: "", loading: "lazy", decoding: "async" });
  picture.addEventListener("error", () => picture.replaceWith(element("span", "none", "no frame was sampled")));
  media.append(picture, element("span", "badge time", `${(clip.end - clip.start).toFixed(1)} s`));
  if (valueOf(clip)) media.append(element("span", "badge value", valueOf(clip)));
  if (clip.decision) media.append(element("span", `stamp ${clip.decision === "keep" ? "keep" : "drop"}`, clip.decision === "keep" ? "keep" : "reject"));
  words.append(tags(clip));
  if (clip.caption) words.append(element("p", `text ${clip.edited ? "edited" : ""}`, clip.caption));
  const from = element("p", "from");
  from.append(element("span", "", clip.title), element("span", "", clock(clip.start)));
  words.append(from);
  item.append(media, words);
  item.tabIndex = index === selected ? 0 : -1;
  item.dataset.id = clip.id;
  item.addEventListener("click", () => select(clips.findIndex((other) => other.id === clip.id), true));
  if (clip.packed && clip.frames > 1) {
    item.addEventListener("pointerenter", () => preview(media, clip));
    item.addEventListener("pointerleave", () => media.querySelector("video")?.remove());
  }
  return item;
}
function tags(clip) {
  const line = element("p", "tags");
  if (clip.keep) line.append(element("span", "tag keep", "kept"));
  for (const reason of clip.reasons) line.append(element("span", "tag drop", reason));
  return line;
}
function replaceCards(changed) {
  for (const clip of changed) {
    const index = clips.findIndex((other) => other.id === clip.id);
    if (index < 0) continue;
    clips[index] = { ...clips[index], decision: clip.decision, caption: clip.caption, edited: clip.edited };
    by("grid").children[index].replaceWith(card(clips[index], index));
    if (index === selected) mark();
    if (detail?.id === clip.id) showDecision({ ...detail, decision: clip.decision, caption: clip.caption, edited: clip.edited });
  }
}
function mark() {
  [...by("grid").children].forEach((item, index) => {
    item.tabIndex = index === selected ? 0 : -1;
    item.setAttribute("aria-current", index === selected);
  });
}
function select(index, focus = false) {
  selected = index;
  mark();
  by("detail").hidden = index < 0;
  if (index < 0) return showNothing();
  const item = by("grid").children[index];
  if (focus) {
    item.focus({ preventScroll: true });
    item.scrollIntoView({ block: "nearest" });
  }
  showDetail(clips[index]);
}
async function move(step) {
  const next = selected + step;
  if (next >= 0 && next < clips.length) return select(next, true);
  if (Math.abs(step) !== 1) return;
  if (next < 0 && state.offset > 0) await turn(-1, "last");
  if (next >= clips.length && state.offset + PAGE < total) await turn(1, "start");
}
function turn(step, then = "start") {
  const offset = state.offset + step * PAGE;
  if (offset < 0 || offset >= total) return;
  state.offset = offset;
  return load(then);
}
function columnsShown() {
  const [first, ...others] = by("grid").children;
  const below = others.findIndex((item) => item.offsetTop > first.offsetTop);
  return below < 0 ? clips.length : below + 1;
}

// One clip

function showNothing() {
  detail = null;
  by("stage").replaceChildren();
}
let waiting = 0;
async function showDetail(clip) {
  detail = clip;
  showDecision(clip);
  showMedia(clip, () => detail?.id === clip.id);
  by("scores").replaceChildren();
  clearTimeout(waiting);
  waiting = setTimeout(async () => {  // delayed, so that a held arrow key does not load every clip
    try {
      const whole = await ask(`/api/clips/${clip.id}`);
      if (detail?.id === clip.id) by("scores").replaceChildren(...scoreRows(whole.scores));
    } catch (error) { fail(error); }
  }, 80);
}
function showDecision(clip) {
  detail = clip;
  for (const button of by("decide").querySelectorAll("[data-decision]")) button.setAttribute("aria-pressed", Boolean(clip.decision) && button.dataset.decision === clip.decision);
  by("reasons").replaceChildren(...tags(clip).children);
  showCaption(clip);
  by("restore").hidden = !clip.edited;
  showCaptionActions();
  const about = [["Source", clip.source], ["Span", `${clock(clip.start)} to ${clock(clip.end)}, ${clip.frames.toLocaleString("en")} frames`],
    ["Picture", `${clip.width}×${clip.height}, ${(clip.fps || 0).toFixed(2)} fps`], ["Bucket", [clip.bucket, clip.split].filter(Boolean).join(", ")], ["Clip", clip.id]];
  by("about").replaceChildren(...about.filter(([, text]) => text).flatMap(([name, text]) => [element("dt", "", name), element("dd", "", text)]));
}
let captionOf = null;  // the clip whose caption is in the text field
const captionText = () => by("caption").value.trim();
const captionChanged = () => captionOf !== null && captionText() !== (captionOf.caption || "").trim();
function showCaption(clip) {
  const other = captionOf?.id !== clip.id;
  if (other && captionChanged()) saveCaption();
  if (other || document.activeElement !== by("caption")) by("caption").value = clip.caption || "";
  captionOf = clip;
}

// Decisions: sent one at a time, so that they arrive in order

function store(path, body) {
  saving = saving.then(async () => {
    try {
      replaceCards((await send(path, body)).clips);
      fail(null);
    } catch (error) { fail(new Error(`not saved: ${error.message}`)); }
  });
  return saving;
}
function decide(decision) {
  if (!detail) return;
  const clip = detail;
  store("/api/decisions", { clips: [clip.id], decision: decision || null });
  if (decision) move(1);
}
function showCaptionActions() {
  by("save").hidden = !captionChanged();
  by("caption-actions").hidden = !captionChanged() && !captionOf?.edited;
}
function saveCaption(text = captionText()) {
  store("/api/captions", { clip: captionOf.id, caption: text });
  by("grid").children[selected]?.focus({ preventScroll: true });
}

// Distribution

async function drawChart() {
  if (!by("spread").open) return;
  const column = by("column").value, chart = by("chart"), number = request;
  try {
    const data = await ask(`/api/distribution?${parameters({ column })}`);
    if (number !== request || column !== by("column").value) return;
    const type = dataset.columns.find((other) => other.name === column)?.type;
    chart.replaceChildren(...(data.type === "histogram" ? histogram(column, data, narrow) : data.type === "funnel" ? funnel(data, narrow) : labels(column, type, data, narrow)));
  } catch (error) { fail(error); }
}
function narrow(condition) {
  if (!condition) return;
  state.where = state.where ? `${/\bor\b/i.test(state.where) ? `(${state.where})` : state.where} AND ${condition}` : condition;
  changed();
}

// Controls

function changed() {
  state.offset = 0;
  showControls();
  load();
}
function showControls() {
  by("where").value = state.where;
  by("sort").querySelector("[value=similarity]").hidden = !state.search;
  by("sort").value = state.sort;
  by("descending").setAttribute("aria-pressed", state.descending);
  by("descending").textContent = state.descending ? "↓" : "↑";
  by("chip").hidden = !state.search;
  by("chip").firstElementChild.textContent = state.label;
  for (const input of by("controls").elements.which) input.checked = input.value === state.which;
}
function searchFor(search, label) {
  if (!search && state.sort === "similarity") Object.assign(state, { sort: "", descending: false });
  Object.assign(state, { search, label: search ? label : "" });
  if (search) Object.assign(state, { sort: "similarity", descending: true });
  if (!search.startsWith("text:")) by("search").value = "";
  changed();
}
async function searchPicture(file) {
  try {
    searchFor((await send("/api/pictures", file, "application/octet-stream")).search, `picture: ${file.name}`);
  } catch (error) { fail(error); }
}
function similar() {
  if (detail) searchFor(`clip:${detail.id}`, `like ${detail.id.slice(0, 8)}`);
}

by("controls").addEventListener("submit", (event) => event.preventDefault());
by("search").addEventListener("change", () => {
  const text = by("search").value.trim();
  searchFor(text ? `text:${text}` : "", text);
});
by("search").addEventListener("focus", () => { send("/api/search", {}).catch(fail); }, { once: true });
by("where").addEventListener("change", () => { state.where = by("where").value.trim(); changed(); });
by("sort").addEventListener("change", () => { state.sort = by("sort").value; changed(); });
by("descending").addEventListener("click", () => { state.descending = !state.descending; changed(); });
by("controls").addEventListener("change", (event) => { if (event.target.name === "which") { state.which = event.target.value; changed(); } });
by("picture").addEventListener("change", (event) => { if (event.target.files[0]) searchPicture(event.target.files[0]); event.target.value = ""; });
by("reference").addEventListener("click", () => searchFor("reference", "like the reference pictures"));
by("chip").querySelector("button").addEventListener("click", () => searchFor("", ""));
by("previous").addEventListener("click", () => turn(-1));
by("next").addEventListener("click", () => turn(1));
by("column").addEventListener("change", drawChart);
by("column").addEventListener("click", (event) => event.preventDefault());
by("spread").addEventListener("toggle", drawChart);
for (const button of by("decide").querySelectorAll("[data-decision]")) button.addEventListener("click", () => decide(button.dataset.decision));
by("similar").addEventListener("click", similar);
by("caption").addEventListener("input", showCaptionActions);
by("save").addEventListener("click", () => saveCaption());
by("restore").addEventListener("click", () => saveCaption(null));
by("help-open").addEventListener("click", () => by("help").showModal());
by("vanished").addEventListener("click", () => by("vanished-list").showModal());
for (const type of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(type, (event) => {
    event.preventDefault();
    by("search-field").classList.toggle("dropping", type === "dragover");
    if (type === "drop" && event.dataTransfer.files[0]) searchPicture(event.dataTransfer.files[0]);
  });
}
by("caption").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) saveCaption();
  if (event.key !== "Escape") return;
  by("caption").value = captionOf.caption || "";
  showCaptionActions();
  by("grid").children[selected]?.focus();
});
const KEYS = {
  ArrowRight: () => move(1), ArrowLeft: () => move(-1), ArrowDown: () => move(columnsShown()), ArrowUp: () => move(-columnsShown()),
  k: () => decide("keep"), r: () => decide("reject"), u: () => decide(""), e: () => by("caption").focus(), s: similar,
  n: () => turn(1), p: () => turn(-1), "/": () => by("search").focus(), f: () => by("where").focus(), "?": () => by("help").showModal(),
  " ": () => { const video = by("stage").querySelector("video"); if (video) video.paused ? video.play() : video.pause(); },
};
document.addEventListener("keydown", (event) => {
  const inField = event.target.closest("input:not([type=radio]), textarea, select, dialog, video") || (event.key === " " && event.target.closest("button, summary"));
  if (inField && event.key === "Escape") event.target.blur();
  if (inField || event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(KEYS, event.key)) return;
  event.preventDefault();
  KEYS[event.key]();
});

async function start() {
  dataset = await ask("/api/dataset");
  document.title = `${dataset.name} · clipmill`;
  by("name").textContent = dataset.name;
  by("facts").textContent = `${count(dataset.clips, "clip")}, ${dataset.kept.toLocaleString("en")} kept · recipe ${dataset.recipe}`;
  const scores = dataset.columns.filter((column) => column.score), others = dataset.columns.filter((column) => !column.score);
  const group = (label, columns) => { const box = Object.assign(element("optgroup"), { label }); box.append(...columns.map((column) => new Option(column.name))); return box; };
  const similarity = new Option("similarity", "similarity");
  by("sort").append(new Option("source and time", ""), similarity, group("Scores", scores), group("Other columns", others));
  by("column").append(new Option("reasons (funnel)", "rejected_by"), group("Scores", scores), group("Other columns", others.filter((column) => !["rejected_by", "clip_id", "caption_json"].includes(column.name))));
  by("columns").append(...dataset.columns.map((column) => new Option(column.name)));
  by("search").disabled = !dataset.text_search;
  if (!dataset.text_search) by("search").placeholder = "this dataset keeps no embeddings to search";
  by("picture-field").hidden = !dataset.picture_search;
  by("reference").hidden = !dataset.reference;
  by("reference").textContent = `Reference (${dataset.reference})`;
  by("vanished").hidden = !dataset.vanished.length;
  by("vanished").textContent = `${count(dataset.vanished.length, "decision")} without a clip`;
  by("vanished-list").querySelector("ul").append(...dataset.vanished.map((lost) => element("li", "", `${lost.source_uri}, ${clock(lost.start)} to ${clock(lost.end)}: ${lost.decision || "caption"}`)));
  const given = new URLSearchParams(location.hash.slice(1));
  for (const name of ["search", "label", "where", "which", "sort"]) state[name] = given.get(name) || "";
  state.descending = given.get("descending") === "true";
  state.offset = Number(given.get("offset")) || 0;
  if (state.search.startsWith("text:")) by("search").value = state.search.slice(5);
  showControls();
  await load();
}
start().catch(fail);
