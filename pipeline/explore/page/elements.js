// DOM helpers shared by the page's modules.

export const element = (tag, className = "", text = "") => Object.assign(document.createElement(tag), { className, textContent: text });
export const by = (id) => document.getElementById(id);
export const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
export function clock(seconds) { // rounded before it is split, so that 59.97 s is 1:00.0
  const tenths = Math.round(seconds * 10);
  return `${Math.floor(tenths / 600)}:${((tenths % 600) / 10).toFixed(1).padStart(4, "0")}`;
}
export function duration(hours) {
  return hours >= 2 ? count(Math.round(hours), "hour") : hours >= 1 / 30 ? count(Math.round(hours * 60), "minute") : count(Math.round(hours * 3600), "second");
}
