"""The `measured` captioner: captions composed from scores only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from captioners.base import Action, Caption, CaptionError, ClipFrames
from captioners.measured.coco_subjects import PLURALS, united
from captioners.measured.colours import colours
from captioners.measured.imagenet_groups import Subject, sport, subjects
from captioners.text.camera_words import CAMERA
from captioners.text.claims import as_sentence
from captioners.text.phases import Phase, camera_spans, motion_phases

VERSION = 8  # increase when captions change for the same scores
TOGETHER = 0.6  # seconds: events that begin within this time share a sentence
DARK_BELOW, BRIGHT_ABOVE = 0.12, 0.72  # mean luma, 0 to 1, below and above which the light is described
LATE = 0.6  # seconds; the shortest pause that is mentioned
LETTERED = 0.005  # smallest fraction of the picture with burned-in text for which writing is mentioned
ALIVE = frozenset({"person", "person doing sport", "animal"})  # groups that may have moved even if the camera does:
# vehicles stand as often as they drive, and before a moving camera near objects seem to move
FROZEN = 0.98  # smallest frozen_share for which "nothing moves" is reported; below it motion may be unmeasured


class Motion(NamedTuple):
    """A phase of motion and the clause that describes it."""

    action: Action
    phase: Phase


class Measured:
    """Composes captions from the columns of `objects`, `tags`, `camera`, `motion`, `faces`, `text` and `exposure`, and
    from the frames' colours. Needs no model and gives the same result on every machine.

    Names at most `most_subjects` subjects with a probability of `least` or more. `Caption.content` is the probability
    of the likeliest subject, 0 if there is none and the caption has only motion, camera and colours.
    """

    def __init__(self, least: float = 0.2, most_subjects: int = 3) -> None:
        self.least, self.most_subjects = least, most_subjects
        self.id = f"measured-{VERSION}:{least}:{most_subjects}"

    def caption(self, clips: Sequence[ClipFrames]) -> list[Caption | CaptionError]:
        """Return one answer per clip, in order; a CaptionError for a clip without usable scores."""
        return [self._caption(clip) for clip in clips]

    def _caption(self, clip: ClipFrames) -> Caption | CaptionError:
        shown = self._subjects(clip)
        subjects = [_with_article(subject.name) for subject in shown if not subject.setting]
        if (clip.scores.get("text_overlay") or 0.0) >= LETTERED:
            subjects.append("writing")
        settings = [subject.name for subject in shown if subject.setting]
        cameras = [
            Action(f"the camera {CAMERA[label]}", start, end)
            for label, start, end in camera_spans(clip.scores, clip.duration)
            if label in CAMERA and label in ("static", clip.scores.get("camera_label"))  # others often err
        ]
        phases = motion_phases(clip.scores, clip.duration)
        if phases == [] and (clip.scores.get("frozen_share") or 0.0) < FROZEN:
            phases = None
        wide = (clip.scores.get("motion_area") or 0.0) > 0.5
        fixed = clip.scores.get("camera_label") == "static"
        mover = _mover([subject for subject in shown if fixed or subject.group in ALIVE])
        motions = [Motion(Action(_movement(p, wide, mover, fixed), p.start, p.end), p) for p in phases or []]
        actions = [motion.action for motion in motions]
        content = as_sentence(", ".join([_list(subjects), *settings[:1]] if subjects else settings[:1]))
        vague = not mover and content
        mentioned = [motion for motion in motions if not vague or (fixed and motion.phase.direction)]
        nothing_moves = phases == []
        named = _list([name for name, _ in colours(clip.frames)])
        style = f"the picture is mostly {named}" if named else ""
        story = _story(cameras, mentioned, nothing_moves, fixed, clip.duration)
        if not content and not story and not style:
            return CaptionError(clip.clip_id, "nothing was measured that could be said of this clip")
        light = _light(clip.scores.get("exposure_luma"))
        provenance = {
            "light": "measured: exposure" if light else "",
            "subjects": _origin(shown, setting=False) or ("measured" if subjects else ""),
            "style": "measured: colours" if style else "",
            "setting": _origin(shown, setting=True),
            "camera": "measured: camera" if cameras else "",
            "actions": "measured: motion" if actions else "",
        }
        return Caption(
            clip_id=clip.clip_id,
            short=_short(content, mover, cameras, [motion.action for motion in mentioned], nothing_moves)
            or as_sentence(style),
            dense=" ".join(part for part in (content, story, "" if content else as_sentence(style), light) if part),
            subjects=tuple(subjects),
            actions=tuple(actions),
            camera=_camera(cameras, clip.duration),
            setting=", ".join(settings),
            light=light,
            style=style,
            content=max((subject.probability for subject in shown), default=0.0),
            provenance={"short": "measured", "dense": "measured"} | {k: v for k, v in provenance.items() if v},
        )

    def _subjects(self, clip: ClipFrames) -> list[Subject]:
        """Return the subjects of the objects, faces and tags, likeliest first."""
        labels = clip.scores.get("tags_labels") or []
        probabilities = clip.scores.get("tags_probabilities") or []
        pairs = [(label.split(",")[0].strip(), float(p)) for label, p in zip(labels, probabilities, strict=False)]
        shown = united(subjects(pairs, self.least), clip.scores, sport(pairs))
        return shown[: self.most_subjects]


def _origin(shown: Sequence[Subject], setting: bool) -> str:
    values = [f"{subject.source} {subject.probability:.2f}" for subject in shown if subject.setting == setting]
    return "measured: " + ", ".join(values) if values else ""


def _mover(subjects: Sequence[Subject]) -> str:
    """Return the only one of `subjects` that can move, as "the dog"; empty if there is none or more than one."""
    movers = [subject.name for subject in subjects if subject.moves]
    if len(movers) != 1:
        return ""
    if " people" in movers[0]:
        return "the people"
    return f"the {_plain(movers[0]).removeprefix('several ')}"


def _plain(name: str) -> str:
    """Return the name of people without what they do."""
    return name.removesuffix(" doing sport").removesuffix(" with a ball")


def _movement(phase: Phase, wide: bool, mover: str, fixed: bool) -> str:
    """Return a lower-case clause that describes the motion of the moving region in this phase; its direction and place
    only under a fixed camera: when the camera moves, or its motion is unknown, the measured ones are often wrong."""
    many = mover == "the people" or mover.replace("the", "several", 1) in PLURALS.values()
    moves, crosses = ("move", "cross") if many else ("moves", "crosses")
    who = mover or "something"
    pace = " slowly" if phase.speed < 0.08 else " fast" if phase.speed > 0.8 else ""
    if not fixed:
        return f"most of the picture moves{pace}" if wide and not mover else f"{who} {moves}{pace}"
    (x0, y0), (x1, y1) = phase.begin, phase.finish
    if phase.direction in ("left", "right"):
        other = "right" if phase.direction == "left" else "left"
        if min(x0, x1) < 0.33 and max(x0, x1) > 0.67:
            return f"{who} {crosses}{pace} from {other} to {phase.direction}"
        return f"{who} {moves}{pace} to the {phase.direction}"
    if phase.direction:
        return f"{who} {moves}{pace} {phase.direction}"
    if wide and not mover:
        return f"most of the picture moves{pace}"
    return f"{who} {moves}{pace} {_place((x0 + x1) / 2, (y0 + y1) / 2)}".rstrip()


def _place(x: float, y: float) -> str:
    """Describe a position, given in fractions of width and height; empty in the middle, the usual place of motion."""
    side = "left" if x < 0.36 else "right" if x > 0.64 else ""
    height = "top" if y < 0.3 else "bottom" if y > 0.7 else ""
    if height:
        return f"at the {height} {side}".rstrip()
    return f"on the {side}" if side else ""


def _story(cameras: list[Action], motions: list[Motion], nothing_moves: bool, fixed: bool, duration: float) -> str:
    """Describe camera and motion in order of time, as sentences. Where a motion stops is said only if the
    camera is fixed."""
    events = []
    for i, (action, _) in enumerate(motions):
        again = " again" if i and motions[i - 1].action.text == action.text else ""
        stop = _stop(i, motions, duration) if fixed else ""
        events.append(Action(action.text + again + stop, action.start, action.end))
    groups: list[list[Action]] = []
    for event in sorted([*cameras, *events], key=lambda e: e.start):
        if groups and event.start - groups[-1][0].start < TOGETHER:
            groups[-1].append(event)
        else:
            groups.append([event])
    if nothing_moves:
        stillness = "nothing moves by itself" if cameras and not _still(cameras) else "nothing moves"
        groups.insert(1 if groups else 0, [Action(stillness, 0.0, duration)])
    sentences = []
    for i, group in enumerate(groups):
        text = "; ".join(event.text for event in sorted(group, key=lambda e: not e.text.startswith("the camera")))
        if group[0].start >= LATE:
            text = f"then {text}" if i else f"after {_seconds(group[0].start)} {text}"
        sentences.append(as_sentence(text))
    return " ".join(sentences)


def _stop(i: int, motions: list[Motion], duration: float) -> str:
    """Return the ending of motion `i` if nothing moves after it."""
    until = motions[i + 1].action.start if i + 1 < len(motions) else duration
    if until - motions[i].action.end < LATE:
        return ""
    (x, y), direction = motions[i].phase.finish, motions[i].phase.direction
    at_edge = {"left": x < 0.2, "right": x > 0.8, "up": y < 0.2, "down": y > 0.8}
    if at_edge.get(direction):
        return ", then nothing moves"
    many = any(f"{verb} " in f"{motions[i].action.text} " for verb in (" move", " cross"))
    return ", then stop" if many else ", then stops"


def _short(content: str, mover: str, cameras: list[Action], actions: list[Action], nothing_moves: bool) -> str:
    """Return one sentence: the content and the longest actions of the camera and of the moving region. That the camera
    holds still is left out, unless only one word would remain. If `mover` alone is the content, it is the subject of
    the sentence: "A dog moves" rather than "A dog; the dog moves"."""
    moves = [] if (" " in content or actions) and _still(cameras) else cameras
    camera, action = (
        max(events, key=lambda e: (e.end - e.start, -e.start)).text if events else "" for events in (moves, actions)
    )
    head, what = content.rstrip("."), mover.removeprefix("the ")
    alone, comma, setting = head.partition(", ")
    if what and action.startswith(mover) and _plain(alone).lower() in _names_of(what):
        activity = alone + action.removeprefix(mover) + comma + setting
        return as_sentence(" while ".join(clause for clause in (activity, camera) if clause))
    activity = "nothing moves" if nothing_moves and _still(cameras) else " while ".join(filter(None, (camera, action)))
    return as_sentence(f"{head}; {activity}" if head and activity else head or activity)


def _names_of(mover: str) -> set[str]:
    """Return how the content names `mover`, which has no article, if it is the only subject."""
    return {_with_article(mover), *(f"{number} {mover}" for number in ("two", "several"))}


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
    """Describe a mean luma, 0 to 1; empty between dark and bright."""
    if luma is None or DARK_BELOW <= luma <= BRIGHT_ABOVE:
        return ""
    return "The picture is dark." if luma < DARK_BELOW else "The picture is bright."


def _with_article(name: str) -> str:
    if name.split()[0] in ("two", "several"):
        return name
    if name.endswith("s") and not name.endswith(("ss", "us", "is")):
        return name
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _list(items: Sequence[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _seconds(value: float) -> str:
    return "a second" if value < 1.5 else f"{value:.0f} seconds"
