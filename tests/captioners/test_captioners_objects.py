"""Captions of the `measured` captioner from detected objects, alone and with tags and faces."""

from __future__ import annotations

import json

import numpy as np
import pytest

from captioners.base import Caption, ClipFrames
from captioners.measured.measured import Measured


def seen(counts=None, tags=None, camera="static", moves=True, **scores):
    """A clip in which objects of these probabilities are detected (1 each unless in `counts`), with a moving middle."""
    labels = [name.replace("_", " ") for name in scores if not name.startswith("faces")]
    faces = {name: value for name, value in scores.items() if name.startswith("faces")}
    times = np.arange(0, 4, 0.25)
    motion = {"motion_times": times, "motion_speed": times * 0 + 0.3, "motion_x": times * 0 + 0.5}
    spans = json.dumps([{"label": camera, "start": 0.0, "end": 4.0, "confidence": 1.0}])
    return {
        "objects_labels": labels,
        "objects_probabilities": [scores[name.replace(" ", "_")] for name in labels],
        "objects_counts": [float((counts or {}).get(name, 1)) for name in labels],
        "tags_labels": [*(tags or {})],
        "tags_probabilities": [*(tags or {}).values()],
        "camera_label": camera,
        "camera_confidence": 1.0,
        "camera_spans": spans,
        **(motion | {"motion_y": times * 0 + 0.5} if moves else {}),
        **faces,
    }


def say(scores) -> Caption:
    (caption,) = Measured().caption([ClipFrames("clip", 4.0, [], np.zeros(0), scores)])
    assert isinstance(caption, Caption), caption
    return caption


def test_a_detected_person_is_the_subject_of_the_short_caption():
    caption = say(seen(person=0.8))
    assert caption.short == "A person moves."
    assert caption.dense == "A person. The camera holds still; the person moves."
    assert caption.content == pytest.approx(0.8)
    assert caption.provenance["subjects"] == "measured: objects 0.80"


@pytest.mark.parametrize(
    ("count", "faces", "people"),
    [(1, 0, "A person"), (2, 0, "Two people"), (2, 1, "Two people"), (1, 2, "Two people"), (5, 0, "Several people")],
)
def test_people_are_counted_by_bodies_and_faces(count, faces, people):
    assert say(seen({"person": count}, person=0.8, faces_count=float(faces))).short.startswith(f"{people} move")


def test_small_faces_without_a_person_are_not_believed_and_large_ones_are_unless_an_animal_has_them():
    assert say(seen(person=0.05, faces_count=1.0, faces_area=0.01)).subjects == ()
    assert say(seen(person=0.15, faces_count=1.0, faces_area=0.01)).subjects == ("a person",)
    assert say(seen(faces_count=1.0, faces_area=0.2)).subjects == ("a person",)
    dog = {"Chihuahua": 0.3, "Pomeranian": 0.2}
    assert say(seen(faces_count=1.0, faces_area=0.2, tags=dog)).subjects == ("a dog",)


def test_a_person_with_gear_does_sport_and_gear_alone_is_nothing():
    assert say(seen(person=0.8, tennis_racket=0.4)).short == "A person doing sport moves."
    assert say(seen(person=0.8, tags={"soccer ball": 0.25})).short == "A person with a ball moves."
    assert say(seen({"person": 2}, person=0.8, sports_ball=0.25)).short == "Two people with a ball move."
    assert say(seen(person=0.8, tags={"soccer ball": 0.1, "barbell": 0.15})).short == "A person doing sport moves."
    assert say(seen(sports_ball=0.9)).subjects == ()


def test_an_object_and_its_tags_are_one_subject_by_the_likelier_name():
    assert say(seen(car=0.9, tags={"minivan": 0.1, "tow truck": 0.1})).subjects == ("a car",)
    assert say(seen(dog=0.5, tags={"arabian camel": 0.8})).subjects == ("an arabian camel",)
    assert say(seen(cow=0.5)).subjects == ("an animal",), "COCO has ten animals"
    assert say(seen(cow=0.7)).subjects == ("a cow",)
    assert say(seen({"car": 4}, car=0.9)).short == "Several cars move."


def test_furniture_means_a_room_and_unlikely_objects_nothing():
    caption = say(seen(television=0.9, couch=0.3, book=0.3))
    assert (caption.subjects, caption.setting) == (("a screen",), "in a room")


def test_a_vehicle_moves_only_before_a_camera_that_stands():
    assert say(seen(car=0.9)).short == "A car moves."
    assert say(seen(car=0.9, camera="pan_right")).short == "A car; the camera pans right."
    assert say(seen(person=0.9, camera="pan_right")).short == "A person moves while the camera pans right."


def test_a_setting_follows_the_sentence_of_the_mover():
    kitchen = {"frying pan": 0.15, "wok": 0.15}
    caption = say(seen(person=0.9, tags=kitchen))
    assert caption.short == "A person and a pot or pan, in a kitchen; the person moves."
    assert say(seen(boat=0.9, tags={"lakeshore": 0.3})).short == "A boat moves, by the water."
