"use strict";
const FIRST = 12;  // clips before "show more"
const grid = document.getElementById("grid"), controls = document.getElementById("controls").elements;
const viewer = document.getElementById("viewer"), root = document.documentElement;
const cards = [...grid.children];
const scores = new Map(JSON.parse(document.getElementById("data").textContent).map((clip) => [clip.id, clip.scores]));
const valueOf = (card, name) => scores.get(card.dataset.id).find((score) => score.name === name) || null;
const element = (tag, className = "", text = "") => Object.assign(document.createElement(tag), { className, textContent: text });

// The encoded clip as a blob, made when it is first needed: browsers seek in blobs, not in data: addresses.
const blobs = new Map();
function media(card) {
  const holder = card.querySelector("script.video");
  if (!holder) return null;
  const kind = holder.dataset.media;
  if (!blobs.has(card)) {
    const bytes = Uint8Array.from(atob(holder.textContent), (letter) => letter.charCodeAt(0));
    blobs.set(card, URL.createObjectURL(new Blob([bytes], { type: kind === "mp4" ? "video/mp4" : "image/jpeg" })));
  }
  return { kind, url: blobs.get(card) };
}
function video(url) {
  const player = element("video");
  Object.assign(player, { src: url, muted: true, loop: true, playsInline: true, autoplay: true });
  return player;
}

function play(card) {
  const button = card.querySelector(".media");
  if (button.classList.contains("playing")) return;
  button.classList.add("playing");
  const found = media(card);
  if (!found || found.kind !== "mp4") return;
  const player = video(found.url);
  player.addEventListener("error", () => player.remove());  // a codec this browser lacks: the strip shows instead
  button.append(player);
}
function stop(card) {
  card.querySelector(".media").classList.remove("playing");
  card.querySelector(".media video")?.remove();
}
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) (entry.isIntersecting && controls.play.checked ? play : stop)(entry.target);
});
for (const card of cards) {
  card.addEventListener("pointerenter", () => play(card));
  card.addEventListener("pointerleave", () => controls.play.checked || stop(card));
  card.addEventListener("focusin", (event) => event.target.matches(":focus-visible") && play(card));
  card.addEventListener("focusout", () => controls.play.checked || stop(card));
  card.querySelector(".media").addEventListener("click", () => open(card));
}

let all = false;  // whether the grid shows more than its first rows
function matching() {
  const which = controls.which.value, reason = controls.reason.value;
  const words = controls.text.value.toLowerCase().split(/\s+/).filter(Boolean);
  return cards.filter((card) => {
    const text = card.querySelector(".words").textContent.toLowerCase();
    return (which === "all" || card.classList.contains(which))
      && (reason === "" || JSON.parse(card.dataset.reasons).includes(reason))
      && words.every((word) => text.includes(word));
  });
}
function arrange() {
  const name = controls.score.value, sign = controls.falling.checked ? -1 : 1;
  const rank = (card) => valueOf(card, name)?.value ?? Infinity * sign;  // clips without the score come last
  const found = matching();
  if (name) found.sort((a, b) => (rank(a) === rank(b) ? 0 : sign * (rank(a) < rank(b) ? -1 : 1)));
  else if (sign < 0) found.reverse();
  const first = all ? found : found.slice(0, FIRST);
  for (const card of cards) {
    const score = name ? valueOf(card, name) : null, badge = card.querySelector(".badge.value");
    card.hidden = !first.includes(card);
    badge.hidden = !score;
    badge.textContent = score ? score.text : "";
  }
  grid.append(...found);
  document.getElementById("empty").hidden = found.length > 0;
  document.getElementById("status").textContent = `${found.length} of the ${cards.length} clips on this page. Point at one to play it, open it for all of its scores.`;
  const rest = document.getElementById("rest");
  rest.hidden = first.length === found.length;
  rest.textContent = `Show ${found.length - first.length} more`;
}
document.getElementById("rest").addEventListener("click", () => {
  const next = matching().length > FIRST ? FIRST : 0;
  all = true;
  arrange();
  grid.children[next].querySelector(".media").focus();
});
function playAll() {
  watcher.disconnect();
  for (const card of cards) controls.play.checked ? watcher.observe(card) : stop(card);
}
document.getElementById("controls").addEventListener("input", (event) => (event.target.name === "play" ? playAll() : arrange()));
document.getElementById("controls").addEventListener("submit", (event) => event.preventDefault());

let current = null;
function open(card) {
  current = card;
  const stage = viewer.querySelector(".stage"), found = media(card), strip = card.querySelector(".strip");
  stage.replaceChildren();
  stage.classList.add("playing");
  const fallBack = () => strip && stage.replaceChildren(strip.cloneNode(true));
  if (found?.kind === "mp4") {
    const player = video(found.url);
    player.controls = true;
    player.addEventListener("error", fallBack);
    stage.append(player);
  } else if (found) stage.append(Object.assign(element("img"), { src: found.url, alt: "" }));
  else fallBack();
  viewer.querySelector(".head").replaceChildren(...[...card.querySelector(".words").children].map((line) => line.cloneNode(true)));
  viewer.querySelector(".head").append(element("p", "more", card.dataset.id));
  viewer.querySelector("tbody").replaceChildren(...scores.get(card.dataset.id).map((score) => {
    const row = element("tr", score.fails ? "fails" : ""), place = element("td", "wide"), bar = element("span", "bar");
    const share = Object.assign(element("i", score.fails ? "drop" : "keep"), { title: "share of all clips that score lower" });
    share.style.width = `${(score.percentile ?? 0) * 100}%`;
    bar.append(share);
    if (score.percentile !== null) place.append(bar);
    row.append(element("th", "", score.name), place, element("td", "", score.text));
    return row;
  }));
  if (!viewer.open) viewer.showModal();
}
function step(by) {
  const visible = [...grid.children].filter((card) => !card.hidden);
  if (visible.length) open(visible[(visible.indexOf(current) + by + visible.length) % visible.length]);
}
viewer.addEventListener("click", (event) => {
  const by = event.target.dataset?.step;
  if (event.target === viewer || by === "0") viewer.close();
  else if (by) step(Number(by));
});
viewer.addEventListener("keydown", (event) => {
  if (event.target.tagName === "VIDEO") return;
  if (event.key === "ArrowLeft" || event.key === "ArrowRight") step(event.key === "ArrowLeft" ? -1 : 1);
});
viewer.addEventListener("close", () => {
  viewer.querySelector(".stage").replaceChildren();
  current?.querySelector(".media").focus();
});
document.getElementById("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
arrange();
