"""The `measured` captioner: says only what was measured, and less when less was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from captioners.base import Action, Caption, CaptionError, ClipFrames
from captioners.measured.colours import colours
from captioners.measured.imagenet_groups import in_general, with_kinds
from captioners.text.camera_words import CAMERA
from captioners.text.claims import as_sentence
from captioners.text.phases import Phase, camera_spans, motion_phases

VERSION = 4  # raise it when the same measurements would be told in other words
# Names of ImageNet's classes that mean a place rather than a thing.
PLACES = {
    "beach": "at a beach",
    "lakeshore": "at a lakeshore",
    "valley": "in a valley",
    "mountain": "in the mountains",
    "cliff": "at a cliff",
    "promontory": "at a promontory",
    "sandbar": "at a sandbar",
    "coral reef": "at a coral reef",
    "volcano": "at a volcano",
    "geyser": "at a geyser",
}
TOGETHER = 0.6  # seconds: events that begin nearer than this are told in one sentence
DARK, BRIGHT = 0.12, 0.72  # mean luma, 0 to 1
LATE = 0.6  # seconds without motion that are worth a word
LETTERED = 0.004  # fraction of the picture that writing covers
NUMBERS = ("no", "a", "two", "three", "four", "five")


class Measured:
    """Captions from the columns of `tags`, `camera`, `motion`, `faces`, `text` and `exposure`, and from the frames'
    colours; needs no model, and is the same on every machine.

    Tags under `least` probability are not said. `confidence` says a tag's probability in words (perhaps under 0.45,
    probably under 0.7) or, with "numbers", as "(0.61)".
    """

    def __init__(self, least: float = 0.3, most_tags: int = 3, confidence: str = "words") -> None:
        if confidence not in ("words", "numbers"):
            raise ValueError(f"captioner measured: confidence is words or numbers, not {confidence!r}")
        self.least, self.most_tags, self.confidence = least, most_tags, confidence
        self.id = f"measured-{VERSION}:{least}:{most_tags}:{confidence}"

    def caption(self, clips: Sequence[ClipFrames]) -> list[Caption | CaptionError]:
        """One answer a clip, in order; an error where nothing was measured that could be said."""
        return [self._one(clip) for clip in clips]

    def _one(self, clip: ClipFrames) -> Caption | CaptionError:
        tags = self._tags(clip)
        seen = _seen(clip.scores)
        things = [*seen, *(_with_article(name) for name, _ in tags if name not in PLACES)]
        places = [PLACES[name] for name, _ in tags if name in PLACES]
        cameras = [
            Action(f"the camera {CAMERA[label]}", start, end)
            for label, start, end in camera_spans(clip.scores, clip.duration)
            if label in CAMERA
        ]
        phases = motion_phases(clip.scores, clip.duration)
        wide = (clip.scores.get("motion_area") or 0.0) > 0.5
        actions = [Action(_movement(p, wide), p.start, p.end) for p in phases or []]
        said = self._tag_sentence(seen, tags)
        named = _list([name for name, _ in colours(clip.frames)])
        style = f"the picture is mostly {named}" if named else ""
        story = _story(cameras, actions, phases, clip.duration)
        if not said and not story and not style:
            return CaptionError(clip.clip_id, "nothing was measured that could be said of this clip")
        light = _light(clip.scores.get("exposure_luma"))
        provenance = {
            "light": "measured: exposure" if light else "",
            "subjects": _origin([p for name, p in tags if name not in PLACES]) or ("measured" if seen else ""),
            "style": "measured: colours" if style else "",
            "setting": _origin([p for name, p in tags if name in PLACES]),
            "camera": "measured: camera" if cameras else "",
            "actions": "measured: motion" if actions else "",
        }
        return Caption(
            clip_id=clip.clip_id,
            short=_short(said, cameras, actions, phases) or as_sentence(style),
            dense=" ".join(part for part in (said, story, as_sentence(style), light) if part),
            subjects=tuple(things),
            actions=tuple(actions),
            camera=_camera(cameras, clip.duration),
            setting=", ".join(places),
            light=light,
            style=style,
            provenance={"short": "measured", "dense": "measured"} | {k: v for k, v in provenance.items() if v},
        )

    def _tags(self, clip: ClipFrames) -> list[tuple[str, float]]:
        """Names of classes or of their kinds that the tags give with enough probability, most likely first; where none
        has enough, "animal" or "vehicle" if that has."""
        labels = clip.scores.get("tags_labels") or []
        probabilities = clip.scores.get("tags_probabilities") or []
        pairs = [(label.split(",")[0].strip(), float(p)) for label, p in zip(labels, probabilities, strict=False)]
        narrow = [(name.split(" (")[0], p) for name, p in with_kinds(pairs)[: self.most_tags] if p >= self.least]
        return narrow or [(name, p) for name, p in in_general(pairs)[:1] if p >= self.least]

    def _tag_sentence(self, seen: Sequence[str], tags: Sequence[tuple[str, float]]) -> str:
        things = [*seen, *(self._hedge(_with_article(name), p) for name, p in tags if name not in PLACES)]
        places = [self._hedge(PLACES[name], p) for name, p in tags if name in PLACES]
        return as_sentence(", ".join([_list(things), *places[:1]] if things else places[:1]))

    def _hedge(self, text: str, probability: float) -> str:
        if self.confidence == "numbers":
            return f"{text} ({probability:.2f})"
        return ("" if probability >= 0.7 else "probably " if probability >= 0.45 else "perhaps ") + text


def _seen(scores: Mapping[str, Any]) -> list[str]:
    """What was found rather than guessed: faces and writing."""
    faces, lettered = int(scores.get("faces_count") or 0), (scores.get("text_area") or 0.0) >= LETTERED
    found = [f"{NUMBERS[faces]} face{'s' * (faces > 1)}" if faces < len(NUMBERS) else "many faces"] if faces else []
    return found + ["some writing"] * lettered


def _origin(probabilities: Sequence[float]) -> str:
    return "measured: tags " + ", ".join(f"{p:.2f}" for p in probabilities) if probabilities else ""


def _movement(phase: Phase, wide: bool) -> str:
    """A clause without a capital: what the moving region does in this phase."""
    pace = " slowly" if phase.speed < 0.08 else " fast" if phase.speed > 0.8 else ""
    (x0, y0), (x1, y1) = phase.begin, phase.finish
    if phase.direction in ("left", "right"):
        other = "right" if phase.direction == "left" else "left"
        if min(x0, x1) < 0.33 and max(x0, x1) > 0.67:
            return f"something crosses{pace} from {other} to {phase.direction}"
        return f"something moves{pace} to the {phase.direction}"
    if phase.direction:
        return f"something moves{pace} {phase.direction}"
    if wide:
        return f"most of the picture moves{pace}"
    return f"something moves{pace} {_place((x0 + x1) / 2, (y0 + y1) / 2)}"


def _place(x: float, y: float) -> str:
    side = "left" if x < 0.36 else "right" if x > 0.64 else ""
    height = "top" if y < 0.3 else "bottom" if y > 0.7 else ""
    if height:
        return f"at the {height} {side}".rstrip()
    return f"on the {side}" if side else "in the middle"


def _story(cameras: list[Action], actions: list[Action], phases: list[Phase] | None, duration: float) -> str:
    """Camera and motion in order of time, as sentences."""
    told = []
    for i, event in enumerate(actions):
        again = " again" if i and actions[i - 1].text == event.text else ""
        told.append(Action(event.text + again + _stop(i, actions, phases, duration), event.start, event.end))
    groups: list[list[Action]] = []
    for event in sorted([*cameras, *told], key=lambda e: e.start):
        if groups and event.start - groups[-1][0].start < TOGETHER:
            groups[-1].append(event)
        else:
            groups.append([event])
    if phases == []:
        told_still = "nothing moves by itself" if cameras and not _still(cameras) else "nothing moves"
        groups.insert(1 if groups else 0, [Action(told_still, 0.0, duration)])
    sentences = []
    for i, group in enumerate(groups):
        text = "; ".join(event.text for event in sorted(group, key=lambda e: not e.text.startswith("the camera")))
        if group[0].start >= LATE:
            text = f"then {text}" if i else f"after {_seconds(group[0].start)} {text}"
        sentences.append(as_sentence(text))
    return " ".join(sentences)


def _stop(i: int, actions: list[Action], phases: list[Phase] | None, duration: float) -> str:
    """What to add to action `i` when nothing moves after it."""
    until = actions[i + 1].start if i + 1 < len(actions) else duration
    if until - actions[i].end < LATE or not phases:
        return ""
    (x, y), direction = phases[i].finish, phases[i].direction
    at_edge = {"left": x < 0.2, "right": x > 0.8, "up": y < 0.2, "down": y > 0.8}
    return ", then nothing moves" if at_edge.get(direction) else ", then stops"


def _short(tags: str, cameras: list[Action], actions: list[Action], phases: list[Phase] | None) -> str:
    """One sentence: the tags, and the longest of what the camera and the moving region do."""
    clauses = [max(events, key=lambda e: (e.end - e.start, -e.start)).text for events in (cameras, actions) if events]
    if phases == [] and _still(cameras):
        clauses = ["nothing moves"]
    told = " while ".join(clauses)
    head = tags.rstrip(".")
    return as_sentence(f"{head}; {told}" if head and told else head or told)


def _still(cameras: list[Action]) -> bool:
    return all(event.text.endswith(CAMERA["static"]) for event in cameras)


def _camera(cameras: list[Action], duration: float) -> str:
    if not cameras:
        return ""
    if len(cameras) == 1 and cameras[0].end - cameras[0].start > 0.8 * duration:
        return as_sentence(cameras[0].text)
    parts = [f"{e.text.removeprefix('the camera ')} from {e.start:.1f} to {e.end:.1f} s" for e in cameras]
    return as_sentence("the camera " + ", then ".join(parts))


def _light(luma: float | None) -> str:
    """Of a mean luma, 0 to 1; what lies between dark and bright is not worth a word."""
    if luma is None or DARK <= luma <= BRIGHT:
        return ""
    return "The picture is dark." if luma < DARK else "The picture is bright."


def _with_article(name: str) -> str:
    if name.endswith("s") and not name.endswith(("ss", "us", "is")):
        return name
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _list(items: Sequence[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _seconds(value: float) -> str:
    return "a second" if value < 1.5 else f"{value:.0f} seconds"
