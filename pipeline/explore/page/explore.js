// The explorer's page. What is shown follows from `state`; texts of the dataset only ever become text nodes.

const PAGE = 60;  // clips
const element = (tag, className = "", text = "") => Object.assign(document.createElement(tag), { className, textContent: text });
const by = (id) => document.getElementById(id);
const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

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
    const page = await ask(`/api/clips?${parameters({ offset: state.offset, limit: PAGE })}`);
    if (number !== request) return;
    fail(null);
    ({ clips, total } = page);
    showStatus(page, (performance.now() - began) / 1000);
    showGrid();
    drawChart();
    select(clips.length === 0 ? -1 : then === "last" ? clips.length - 1 : then === "none" ? -1 : 0, then !== "first");
  } catch (error) {
    if (number === request) fail(error);
  } finally {
    if (number === request) document.querySelector(".results").classList.remove("busy");
  }
}
function showStatus(page, seconds) {
  const status = by("status");
  status.replaceChildren(element("b", "", count(page.total, "clip")), `, ${page.kept.toLocaleString("en")} kept, ${page.hours < 1 ? count(Math.round(page.hours * 60), "minute") : count(Math.round(page.hours), "hour")}`);
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
const clock = (seconds) => `${Math.floor(seconds / 60)}:${(seconds % 60).toFixed(1).padStart(4, "0")}`;
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
function preview(media, clip) {
  if (reducedMotion.matches || media.querySelector("video")) return;
  const video = Object.assign(element("video"), { src: `/media/${clip.id}`, muted: true, loop: true, autoplay: true, playsInline: true });
  video.addEventListener("error", () => video.remove());
  media.append(video);
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
  showMedia(clip);
  by("scores").replaceChildren();
  clearTimeout(waiting);
  waiting = setTimeout(async () => {  // not for every clip that a held arrow key passes
    try {
      const whole = await ask(`/api/clips/${clip.id}`);
      if (detail?.id === clip.id) showScores(whole);
    } catch (error) { fail(error); }
  }, 80);
}
function showDecision(clip) {
  detail = clip;
  for (const button of by("decide").querySelectorAll("[data-decision]")) button.setAttribute("aria-pressed", Boolean(clip.decision) && button.dataset.decision === clip.decision);
  by("reasons").replaceChildren(...tags(clip).children);
  if (document.activeElement !== by("caption")) by("caption").value = clip.caption || "";
  by("restore").hidden = !clip.edited;
  showCaptionActions();
  const about = [["Source", clip.source], ["Span", `${clock(clip.start)} to ${clock(clip.end)}, ${clip.frames.toLocaleString("en")} frames`],
    ["Picture", `${clip.width}×${clip.height}, ${(clip.fps || 0).toFixed(2)} fps`], ["Bucket", [clip.bucket, clip.split].filter(Boolean).join(", ")], ["Clip", clip.id]];
  by("about").replaceChildren(...about.filter(([, text]) => text).flatMap(([name, text]) => [element("dt", "", name), element("dd", "", text)]));
}
function showMedia(clip) {
  const stage = by("stage"), still = clip.frames === 1, player = element(still ? "img" : "video");
  const poster = Object.assign(element("img"), { src: `/thumbnails/${clip.id}`, alt: "" });
  poster.addEventListener("error", () => poster.remove());
  Object.assign(player, { src: `/media/${clip.id}` }, still ? { alt: "" } : { muted: true, loop: true, controls: true, playsInline: true, autoplay: !reducedMotion.matches });
  stage.replaceChildren(poster, player);
  if (!clip.packed && !still) stage.append(element("p", "note", "cutting it out of its source …"));
  player.addEventListener(still ? "load" : "loadeddata", () => { poster.remove(); stage.querySelector(".note")?.remove(); });
  player.addEventListener("error", async () => {
    if (detail?.id !== clip.id) return;
    player.remove();
    const reason = await fetch(`/media/${clip.id}`).then(async (answer) => (answer.ok ? "this browser cannot play it" : (await answer.json()).error), () => "the explorer has ended");
    if (detail?.id !== clip.id) return;
    stage.replaceChildren(strip(clip), element("p", "note", `sampled frames: ${reason}`));
  });
}
function strip(clip) {
  const frame = element("div", "strip"), picture = Object.assign(element("img"), { src: `/strips/${clip.id}`, alt: "" });
  picture.addEventListener("load", () => {
    const aspect = clip.width / clip.height, frames = Math.max(1, Math.round(picture.naturalWidth / picture.naturalHeight / aspect));
    Object.assign(frame.style, { aspectRatio: `${picture.naturalWidth / frames} / ${picture.naturalHeight}`, width: "100%" });
    Object.assign(picture.style, { width: `${100 * frames}%` });
    if (!reducedMotion.matches) picture.animate({ transform: ["none", "translateX(-100%)"] }, { duration: 600 * frames, iterations: Infinity, easing: `steps(${frames})` });
  });
  picture.addEventListener("error", () => frame.remove());
  frame.append(picture);
  return frame;
}
function showScores(whole) {
  by("scores").replaceChildren(...whole.scores.map((score) => {
    const row = element("tr", score.fails ? "fails" : ""), name = element("th", "", score.name), place = element("td", "wide"), value = element("td", "", score.text);
    name.scope = "row";
    if (score.share !== null && score.share !== undefined) {
      const bar = element("span", "bar"), share = element("i");
      share.style.width = `${score.share * 100}%`;
      bar.title = `${Math.round(score.share * 100)}% of the clips score lower`;
      bar.append(share);
      place.append(bar);
    }
    const limits = ["min", "max"].filter((side) => score.bounds[side] !== null && score.bounds[side] !== undefined).map((side) => `${side} ${score.bounds[side]}`);
    if (limits.length) value.append(element("br"), element("small", "", limits.join(", ")));
    row.append(name, place, value);
    return row;
  }));
}

// Decisions: one after the other, so that a later one is never overtaken by an earlier one

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
  const changed = detail && by("caption").value.trim() !== (detail.caption || "").trim();
  by("save").hidden = !changed;
  by("caption-actions").hidden = !changed && !detail?.edited;
}
function saveCaption(text) {
  const clip = detail;
  by("caption").blur();
  return store("/api/captions", { clip: clip.id, caption: text });
}

// Distribution

async function drawChart() {
  if (!by("spread").open) return;
  const column = by("column").value, chart = by("chart"), number = request;
  try {
    const data = await ask(`/api/distribution?${parameters({ column })}`);
    if (number !== request || column !== by("column").value) return;
    chart.replaceChildren(...(data.type === "histogram" ? histogram(column, data) : data.type === "funnel" ? funnel(data) : labels(column, data)));
  } catch (error) { fail(error); }
}
function svg(tag, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}
const short = (value) => (value === null ? "–" : Number.isInteger(value) ? value.toLocaleString("en") : Number(value.toPrecision(3)).toString());
function histogram(column, data) {
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
function bars(rows) {
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
function funnel(data) {
  const all = Math.max(1, data.total);
  const rows = data.steps.map((step) => ({ label: step.label, share: step.left / all, lost: step.removed / all, text: `−${step.removed.toLocaleString("en")} → ${step.left.toLocaleString("en")}`, condition: `list_contains(rejected_by, ${quoted(step.label)})` }));
  return [bars([{ label: "found", share: 1, text: data.total.toLocaleString("en") }, ...rows])];
}
function labels(column, data) {
  const most = Math.max(1, ...data.bars.map(([, number]) => number)), type = dataset.columns.find((other) => other.name === column)?.type;
  const condition = (label) => (type === "list" ? `list_contains(${column}, ${quoted(label)})` : label === "None" ? `${column} IS NULL` : type === "yes or no" ? `${column} = ${label.toLowerCase()}` : `${column} = ${quoted(label)}`);
  const shown = bars(data.bars.map(([label, number]) => ({ label: label === "None" ? "none" : label, share: number / most, text: number.toLocaleString("en"), condition: condition(label) })));
  return data.values > data.bars.length ? [shown, element("p", "soft", `the ${data.bars.length} most frequent of ${data.values.toLocaleString("en")}`)] : [shown];
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
by("where").addEventListener("change", () => { state.where = by("where").value.trim(); changed(); });
by("sort").addEventListener("change", () => { state.sort = by("sort").value; changed(); });
by("descending").addEventListener("click", () => { state.descending = !state.descending; changed(); });
by("controls").addEventListener("change", (event) => { if (event.target.name === "which") { state.which = event.target.value; changed(); } });
by("picture").addEventListener("change", (event) => { if (event.target.files[0]) searchPicture(event.target.files[0]); event.target.value = ""; });
by("reference").addEventListener("click", () => searchFor("reference", "like the reference pictures"));
by("chip").querySelector("button").addEventListener("click", () => { by("search").value = ""; searchFor("", ""); });
by("previous").addEventListener("click", () => turn(-1));
by("next").addEventListener("click", () => turn(1));
by("column").addEventListener("change", drawChart);
by("column").addEventListener("click", (event) => event.preventDefault());
by("spread").addEventListener("toggle", drawChart);
for (const button of by("decide").querySelectorAll("[data-decision]")) button.addEventListener("click", () => decide(button.dataset.decision));
by("similar").addEventListener("click", similar);
by("caption").addEventListener("input", showCaptionActions);
by("save").addEventListener("click", () => saveCaption(by("caption").value));
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
  if (event.key === "Escape") { by("caption").value = detail.caption || ""; showCaptionActions(); }
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) saveCaption(by("caption").value);
  if (event.key === "Escape" || (event.key === "Enter" && (event.ctrlKey || event.metaKey))) by("grid").children[selected]?.focus();
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
