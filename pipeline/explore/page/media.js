// Media of a clip: a video or image in the stage, its sampled frames if it has neither, and the preview on its card.

import { by, element } from "./elements.js";

const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

export function preview(media, clip) {
  if (reducedMotion.matches || media.querySelector("video")) return;
  const video = Object.assign(element("video"), { src: `/media/${clip.id}`, muted: true, loop: true, autoplay: true, playsInline: true });
  video.addEventListener("error", () => video.remove());
  media.append(video);
}
// `isShown` says whether the stage still shows this clip.
export function showMedia(clip, isShown) {
  const stage = by("stage"), still = clip.frames === 1, player = element(still ? "img" : "video");
  const poster = Object.assign(element("img"), { src: `/thumbnails/${clip.id}`, alt: "" });
  poster.addEventListener("error", () => poster.remove());
  Object.assign(player, { src: `/media/${clip.id}` }, still ? { alt: "" } : { muted: true, loop: true, controls: true, playsInline: true, autoplay: !reducedMotion.matches });
  stage.replaceChildren(poster, player);
  if (!clip.packed && !still) stage.append(element("p", "note", "cutting it out of its source …"));
  player.addEventListener(still ? "load" : "loadeddata", () => { poster.remove(); stage.querySelector(".note")?.remove(); });
  player.addEventListener("error", async () => {
    if (!isShown()) return;
    player.remove();
    const reason = await fetch(`/media/${clip.id}`).then(async (answer) => (answer.ok ? "this browser cannot play it" : (await answer.json()).error), () => "the explorer has ended");
    if (!isShown()) return;
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
