"""Subjects by the detector of COCO's classes, and their union with those that the tags name.

The detector finds people, vehicles and large objects far more surely than ImageNet's classes do, which have no people;
those classes are more precise about animals and about what COCO does not have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from captioners.measured.imagenet_groups import Subject

PERSON, PEOPLE = 0.25, ("person", "two people", "several people")  # probability; names by number, unreliable above two
WITH_FACE, LARGE_FACE = 0.1, 0.05  # a face is believed where a person has that probability, or where faces cover that
# share of the picture, so that little else of a person is seen, and no animal is: cats and patterns have faces, too
MOVING, THING = 0.4, 0.5  # probabilities from which vehicles and animals, and other objects, are named
NAMED_ANIMAL = 0.6  # ... from which an animal is named without the tags: COCO has ten animals, and calls a deer a cow
ANIMALS = frozenset(["bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"])
SPORT = ("frisbee", "skis", "snowboard", "sports ball", "baseball bat", "surfboard", "tennis racket")
SPORT_GEAR = 0.2  # probability of such an object from which a person does sport ...
SPORT_TAGS = 0.2  # ... or of the tags of sport
SEVERAL = 3  # objects at once from which "several cars" are named instead of "a car"
COUNTED = ("car", "truck", "bicycle", "boat", "bottle", "cup", "dog", "horse", "cow", "bird", "book")
PLURALS = {name: f"several {name}s" for name in COUNTED}
FURNITURE = frozenset(
    ("couch", "bed", "dining table", "toilet", "television", "microwave", "oven", "toaster", "sink", "refrigerator")
)


class Thing(NamedTuple):
    """How a class of COCO is named in a caption, and the group of ImageNet's classes that it belongs to."""

    name: str
    group: str
    moves: bool = False


THINGS: Mapping[str, Thing] = {
    "bicycle": Thing("bicycle", "bicycle", True),
    "car": Thing("car", "motor vehicle", True),
    "bus": Thing("bus", "motor vehicle", True),
    "truck": Thing("truck", "motor vehicle", True),
    "motorcycle": Thing("motorcycle or scooter", "motorcycle or scooter", True),
    "aeroplane": Thing("aircraft", "aircraft", True),
    "train": Thing("train", "train", True),
    "boat": Thing("boat", "boat", True),
    **{name: Thing(name, "animal", True) for name in ANIMALS},
    "bottle": Thing("bottle", "bottle"),
    **{name: Thing(name, "cup or bowl") for name in ("cup", "bowl")},
    "wine glass": Thing("glass", "cup or bowl"),
    **{name: Thing(name, "piece of food") for name in ("banana", "apple", "sandwich", "pizza", "doughnut", "cake")},
    "television": Thing("screen", "screen"),
    "laptop": Thing("laptop", "computer or office machine"),
    "keyboard": Thing("keyboard", "computer or office machine"),
    "teddy bear": Thing("toy", "toy"),
    **{name: Thing(name, name) for name in ("book", "clock", "umbrella", "potted plant", "kite", "skateboard")},
}


def united(by_tags: Sequence[Subject], scores: Mapping[str, Any], sport: tuple[str, float]) -> list[Subject]:
    """Return the subjects `by_tags` together with those of the columns of `objects` and `faces`, likeliest first.
    `sport` is what the tags say that a person does, and how likely. Without columns of `objects`, faces alone make
    people."""
    labels = scores.get("objects_labels")
    chances = dict(zip(labels or (), scores.get("objects_probabilities") or (), strict=False))
    counts = dict(zip(labels or (), scores.get("objects_counts") or (), strict=False))
    faces = int(scores.get("faces_count") or 0)
    person = chances.get("person", 0.0)
    subjects = list(by_tags)
    large = (scores.get("faces_area") or 0.0) >= LARGE_FACE and all(s.group != "animal" for s in by_tags)
    if person >= PERSON or (faces and (labels is None or large or person >= WITH_FACE)):
        count = max(faces, int(counts.get("person", 0.0)) if person >= PERSON else 0, 1)
        activity, chance = sport
        gear = max(SPORT, key=lambda name: chances.get(name, 0.0))
        if chances.get(gear, 0.0) >= SPORT_GEAR:
            activity, chance = "with a ball" if gear == "sports ball" else "doing sport", 1.0
        does = (person >= PERSON and chance >= SPORT_TAGS) or any(s.group == "person doing sport" for s in by_tags)
        people = PEOPLE[min(count, len(PEOPLE)) - 1] + (f" {activity}" if does else "")
        subjects = [s for s in subjects if not s.name.startswith("person")]
        source = "faces" if faces else "objects"
        subjects.append(Subject(people, max(person, float(faces > 0)), False, True, "person", source))
    for label, thing in THINGS.items():
        chance = chances.get(label, 0.0)
        if chance >= (MOVING if thing.moves else THING):
            subjects = _with(subjects, label, thing, chance, int(counts.get(label, 1.0)))
    indoors = max((chances.get(name, 0.0) for name in FURNITURE), default=0.0)
    if indoors >= THING and not any(s.setting for s in subjects):
        subjects.append(Subject("in a room", indoors, True, False, "in a room", "objects"))
    return sorted(subjects, key=lambda subject: -subject.probability)


def _with(subjects: list[Subject], label: str, thing: Thing, chance: float, count: int) -> list[Subject]:
    """Add an object, or make the subject of its group likelier; the likelier of the two names it."""
    same = next((subject for subject in subjects if subject.group == thing.group), None)
    name = "animal" if label in ANIMALS and chance < NAMED_ANIMAL else thing.name
    if count >= SEVERAL and name in PLURALS:
        name = PLURALS[name]
    if same is None:
        return [*subjects, Subject(name, chance, False, thing.moves, thing.group, "objects")]
    if same.probability >= chance:
        return subjects
    better = same._replace(name=same.name if name == "animal" else name, probability=chance, source="objects")
    return [better if subject is same else subject for subject in subjects]
