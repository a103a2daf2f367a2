// DOM helpers shared by the page's modules.

export const element = (tag, className = "", text = "") => Object.assign(document.createElement(tag), { className, textContent: text });
export const by = (id) => document.getElementById(id);
export const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
export const clock = (seconds) => `${Math.floor(seconds / 60)}:${(seconds % 60).toFixed(1).padStart(4, "0")}`;
export function duration(hours) {
  return hours >= 2 ? count(Math.round(hours), "hour") : hours >= 1 / 30 ? count(Math.round(hours * 60), "minute") : count(Math.round(hours * 3600), "second");
}
