"""The measured captioner says what was measured, in order of time, and nothing else."""

import functools
import json

import numpy as np
import pytest
from footage import measured_clip
from hypothesis import given, settings
from hypothesis import strategies as st

from captioners import load_captioner
from captioners.base import Action, Caption, CaptionError, ClipFrames, to_json
from captioners.measured.colours import colours
from captioners.measured.imagenet_groups import GROUPS, _members, subjects
from captioners.text.camera_words import CAMERA
from captioners.text.phases import camera_spans, motion_peaks, motion_phases

clip = functools.partial(measured_clip.clip, 4.0)
# A fixed camera, too uncertain for a sentence of its own.
under_a_fixed_camera = functools.partial(clip, camera_label="static", camera_confidence=0.4)


def say(clip, **options):
    (answer,) = load_captioner("measured", options).caption([clip])
    return answer


def leftwards(t):
    return (0.9 - 0.35 * t, 0.5, 0.3) if t < 2.4 else None


def test_a_crossing_that_stops_under_a_fixed_camera_is_told_with_its_times():
    caption = say(clip(leftwards, camera_label="static", camera_confidence=0.9))
    assert caption.dense == "The camera holds still; something crosses from right to left, then nothing moves."
    assert caption.short == "Something crosses from right to left."
    (action,) = caption.actions
    assert action.start == 0.0
    assert action.end == pytest.approx(2.4, abs=0.11)
    assert caption.camera == "The camera holds still."
    assert caption.provenance["actions"] == "measured: motion"


@pytest.mark.parametrize("label", ["pan_left", None])
def test_direction_and_place_of_motion_are_not_told_where_the_camera_moves_or_is_unknown(label):
    caption = say(clip(leftwards, camera_label=label, camera_confidence=0.9 if label else None))
    assert [action.text for action in caption.actions] == ["something moves"]
    assert caption.dense.lower().endswith("something moves.")


def test_an_object_that_halts_inside_the_picture_stops():
    caption = say(under_a_fixed_camera(lambda t: (0.1 + 0.3 * t, 0.5, 0.2) if t < 2 else None))
    assert caption.dense == "Something moves to the right, then stops."


def test_events_are_told_in_order_of_time():
    spans = [{"label": "pan_right", "start": 0.0, "end": 2.0}, {"label": "static", "start": 2.0, "end": 4.0}]
    caption = say(
        clip(
            lambda t: (0.2, 0.5, 0.1) if t > 1.9 else None,
            camera_label="pan_right",
            camera_confidence=1.0,
            camera_spans=json.dumps(spans),
        )
    )
    assert caption.dense == "The camera pans right. Then the camera holds still; something moves."
    assert caption.camera == "The camera pans right from 0.0 to 2.0 s, then holds still from 2.0 to 4.0 s."


def tagged(**probabilities):
    """A clip with these tags and nothing else; underscores stand for spaces."""
    names = [name.replace("_", " ") for name in probabilities]
    return ClipFrames(
        "clip", 4.0, [], np.zeros(0), {"tags_labels": names, "tags_probabilities": [*probabilities.values()]}
    )


def test_what_is_probable_is_told_and_the_rest_is_not():
    clip = tagged(mountain_bike=0.4, tricycle=0.1, valley=0.3, ox=0.05)
    assert say(clip).dense == "A bicycle, in the mountains."
    assert say(clip).setting == "in the mountains"
    assert say(clip).content == pytest.approx(0.5)
    assert say(clip, least=0.35).dense == "A bicycle."
    assert say(clip, most_subjects=1).setting == ""


def test_clothes_and_gear_mean_a_person_and_much_gear_sport():
    assert say(tagged(sweatshirt=0.2, jeans=0.1)).dense == "A person."
    assert say(tagged(barbell=0.25, parallel_bars=0.2)).dense == "A person doing sport."
    assert say(tagged(barbell=0.15, jeans=0.2)).dense == "A person."


def test_the_one_subject_that_can_move_is_named_instead_of_something():
    scores = under_a_fixed_camera(leftwards).scores
    dog = {"tags_labels": ["Golden Retriever", "sliding door"], "tags_probabilities": [0.4, 0.1]}
    assert say(under_a_fixed_camera(leftwards, **dog)).dense.startswith("A dog. The dog crosses from right to left")
    people = say(under_a_fixed_camera(leftwards, faces_count=2.0)).dense
    assert people.startswith("Two people. The people cross from right to left")
    screen = {"tags_labels": ["website"], "tags_probabilities": [0.5]}
    assert "Something crosses" in say(under_a_fixed_camera(leftwards, **screen)).dense
    both = say(ClipFrames("clip", 4.0, [], np.zeros(0), {**scores, **dog, "faces_count": 1.0})).dense
    assert "Something crosses" in both


def test_motion_without_a_direction_is_told_only_where_it_has_a_name_or_nothing_else_is_known():
    def stays(t):
        return (0.5, 0.5, 0.3)

    assert say(clip(stays)).dense == "Something moves."
    screen = {"tags_labels": ["website"], "tags_probabilities": [0.5]}
    assert say(clip(stays, **screen)).dense == "A web page or program on a screen."
    assert len(say(clip(stays, **screen)).actions) == 1


def test_a_caption_says_how_sure_it_is_of_what_is_shown():
    assert say(clip(leftwards)).content == 0.0
    assert say(clip(leftwards, faces_count=1.0)).content == 1.0
    assert json.loads(to_json(say(clip(leftwards))))["content"] == 0.0


def test_nothing_moving_is_said_and_nothing_measured_is_not():
    static = {"camera_label": "static", "camera_confidence": 1.0}
    assert say(clip(**static, frozen_share=1.0)).dense == "The camera holds still. Nothing moves."
    assert say(clip(**static, frozen_share=0.5)).dense == "The camera holds still.", "small motion is not measured"
    blank = ClipFrames("clip", 3.0, [], np.zeros(0), {"tags_labels": ["ox"], "tags_probabilities": [0.1]})
    assert isinstance(say(blank), CaptionError)


def test_a_camera_that_is_not_sure_is_not_said():
    assert say(clip(leftwards, camera_label="pan_left", camera_confidence=0.3)).camera == ""
    assert say(clip(leftwards, camera_label=None, camera_confidence=0.9)).camera == ""


def test_jitter_and_short_pauses_are_one_phase():
    phases = motion_phases(clip(lambda t: (0.5, 0.5, 0.3) if abs(t - 2.1) > 0.05 else None).scores, 4.0)
    assert len(phases) == 1
    assert motion_phases(clip(lambda t: (0.5, 0.5, 0.3) if abs(t - 2.1) < 0.05 else None).scores, 4.0) == []


def test_a_region_that_wanders_has_no_direction():
    (phase,) = motion_phases(clip(lambda t: (0.5 + 0.3 * np.sin(9 * t), 0.5, 0.3)).scores, 4.0)
    assert phase.direction == ""


def test_spans_of_the_same_label_join_and_flickers_go():
    spans = [("pan_left", 0, 1), ("tilt_up", 1, 1.2), ("pan_left", 1.2, 4)]
    scores = {
        "camera_label": "pan_left",
        "camera_confidence": 0.8,
        "camera_spans": json.dumps([{"label": label, "start": a, "end": b} for label, a, b in spans]),
    }
    assert camera_spans(scores, 4.0) == [("pan_left", 0.0, 4.0)]


@given(
    speeds=st.lists(st.floats(0, 3) | st.just(float("nan")), min_size=0, max_size=30),
    label=st.sampled_from([None, *CAMERA]),
    tags=st.lists(st.tuples(st.sampled_from(["ox", "mountain", "sunglasses"]), st.floats(0, 1)), max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_any_measurements_give_plain_sentences_and_times_inside_the_clip(speeds, label, tags):
    times = (np.arange(len(speeds)) * 0.2 + 0.1).tolist()
    duration = max(0.4, len(speeds) * 0.2)
    where = [float("nan") if np.isnan(s) or s == 0 else 0.1 + 0.02 * i for i, s in enumerate(speeds)]
    scores = {
        "motion_times": times,
        "motion_speed": speeds,
        "motion_x": where,
        "motion_y": where,
        "camera_label": label,
        "camera_confidence": 0.9,
        "tags_labels": [t for t, _ in tags],
        "tags_probabilities": [p for _, p in tags],
    }
    caption = say(ClipFrames("clip", duration, [], np.zeros(0), scores))
    if isinstance(caption, CaptionError):
        return
    for text in (caption.short, caption.dense):
        assert text.endswith(".")
        assert text[0].isupper()
        assert "nan" not in text
        assert "  " not in text
    for action in caption.actions:
        assert 0 <= action.start < action.end <= duration + 1e-6
    assert all(0 <= peak <= duration for peak in motion_peaks(scores, duration))
    assert json.loads(to_json(caption))["dense"] == caption.dense


def test_json_keeps_every_field_that_says_something():
    caption = Caption("id", "A.", "B.", ("ox",), (Action("ox walks", 0.0, 1.25),), "still", "field", "dusk")
    assert json.loads(to_json(caption)) == {
        "clip_id": "id", "short": "A.", "dense": "B.", "subjects": ["ox"],
        "actions": [{"text": "ox walks", "start": 0.0, "end": 1.25}],
        "camera": "still", "setting": "field", "light": "dusk", "content": 1.0,
    }  # fmt: skip


def test_dark_and_bright_pictures_are_said_and_others_not():
    for luma, text in ((0.05, "The picture is dark."), (0.9, "The picture is bright."), (0.4, "")):
        caption = say(clip(leftwards, exposure_luma=luma))
        assert caption.light == text
        assert caption.dense.endswith(text or "moves.")


def test_what_rustles_beside_a_passing_car_is_still():
    caption = say(under_a_fixed_camera(lambda t: (0.1 + 0.3 * t, 0.5, 1.3) if t < 2 else (0.3, 0.7, 0.08)))
    assert caption.dense == "Something moves fast to the right, then stops."


def test_breeds_that_a_tagger_wavers_between_are_together_a_dog():
    tags = {
        "tags_labels": ["Golden Retriever", "Labrador Retriever", "tennis ball"],
        "tags_probabilities": [0.4, 0.35, 0.1],
    }
    assert say(ClipFrames("clip", 4.0, [], np.zeros(0), tags)).short == "A dog."
    sure = {"tags_labels": ["Golden Retriever", "Labrador Retriever"], "tags_probabilities": [0.8, 0.1]}
    assert say(ClipFrames("clip", 4.0, [], np.zeros(0), sure)).short == "A Golden Retriever."


def test_animals_need_one_likely_class_because_many_unlikely_ones_add_up_on_any_picture():
    birds = ("jacamar", "kite (bird of prey)", "king penguin", "toucan", "hummingbird", "ostrich", "goldfinch", "robin")
    assert subjects([(bird, 0.06) for bird in birds], 0.2) == []
    (bird,) = subjects([(birds[0], 0.12), *((bird, 0.06) for bird in birds[1:])], 0.2)
    assert bird.name == "bird"


def test_groups_and_kinds_hold_the_classes_that_they_name():
    members = {group.name: (names, kinds) for group, names, kinds in _members()}
    assert len(members) == len(GROUPS)
    for name, group, subgroup in (
        ("tabby cat", "animal", "cat"),
        ("great grey owl", "animal", "bird"),
        ("taxicab", "motor vehicle", "car"),
        ("mountain bike", "bicycle", None),
        ("Windsor tie", "person", None),
        ("baseball player", "person doing sport", None),
        ("coral reef", "under water", None),
        ("website", "screen", "web page or program on a screen"),
        ("frying pan", "in a room", "in a kitchen"),
        ("sandbar", "by the water", "by the sea"),
        ("ladybug", "plants or flowers", None),
    ):
        names, kinds = members[group]
        assert name in names
        assert subgroup is None or name in kinds[subgroup]
    assert len(members["animal"][1]["dog"]) == 118
    assert "unicycle" in members["bicycle"][0]
    assert not {"hot dog", "Christmas stocking", "catamaran"} & members["animal"][0]


@given(tags=st.lists(st.tuples(st.sampled_from(sorted(set().union(*(m for _, m, _ in _members())))), st.floats(0, 1))))
@settings(max_examples=60, deadline=None)
def test_any_tags_give_each_subject_once_likeliest_first(tags):
    shown = subjects(tags, 0.2)
    assert [s.probability for s in shown] == sorted((s.probability for s in shown), reverse=True)
    assert len({s.name for s in shown}) == len(shown)


def test_where_no_kind_is_likely_an_animal_is_still_an_animal():
    tags = {
        "tags_labels": ["sea lion", "albatross", "axolotl", "king penguin", "monitor"],
        "tags_probabilities": [0.2, 0.1, 0.15, 0.1, 0.05],
    }
    assert say(ClipFrames("clip", 4.0, [], np.zeros(0), tags)).short == "An animal, by the sea."


def test_animals_that_only_add_up_are_not_said():
    tags = {
        "tags_labels": ["stretcher", "Giant Schnauzer", "sea lion", "monitor", "axolotl", "parallel bars"],
        "tags_probabilities": [0.15, 0.15, 0.15, 0.1, 0.1, 0.1],
    }
    assert isinstance(say(ClipFrames("clip", 4.0, [], np.zeros(0), tags)), CaptionError)


def test_people_by_their_faces_and_writing_are_told_and_counted():
    caption = say(under_a_fixed_camera(leftwards, faces_count=2.0, text_overlay=0.08))
    assert caption.dense.startswith("Two people and writing. The people cross")
    assert caption.subjects == ("two people", "writing")
    assert say(clip(leftwards, faces_count=9.0)).subjects == ("several people",)
    assert say(clip(leftwards, faces_count=0.0, text_area=0.5, text_overlay=None)).subjects == ()


@pytest.mark.parametrize(
    ("parts", "style"),
    [
        ([((40, 160, 50), 1.0)], "the picture is mostly green"),
        ([((120, 170, 250), 0.4), ((40, 160, 50), 0.3), ((10, 10, 10), 0.3)], "the picture is mostly blue and green"),
        ([((128, 128, 128), 0.6), ((250, 40, 40), 0.4)], "the picture is mostly grey"),
        ([((10, 10, 10), 0.7), ((40, 160, 50), 0.3)], ""),
        ([((150, 140, 130), 1.0)], ""),  # between grey and a colour
        ([((110, 70, 30), 1.0)], "the picture is mostly brown"),
    ],
)
def test_colours_are_said_where_they_fill_the_picture(parts, style):
    frame = np.zeros((60, 100, 3), np.uint8)
    at = 0
    for colour, share in parts:
        frame[:, at : at + round(100 * share)] = colour
        at += round(100 * share)
    given = ClipFrames("clip", 4.0, [frame], np.zeros(1), clip(leftwards).scores)
    caption = say(given)
    assert caption.style == style
    assert caption.provenance.get("style") == ("measured: colours" if style else None)
    assert caption.dense.endswith(style.capitalize() + ".")


def test_a_region_that_travels_further_than_its_content_moves_has_no_direction():
    def jumps(t):
        return (0.2 + 0.2 * t, 0.5, 0.05)

    assert say(under_a_fixed_camera(jumps)).dense == "Something moves slowly."
    assert "right" in say(under_a_fixed_camera(lambda t: (0.2 + 0.2 * t, 0.5, 0.3))).dense


def test_a_brief_label_of_the_camera_that_is_not_the_clips_is_left_out():
    spans = json.dumps([{"label": "static", "start": 0, "end": 2.5}, {"label": "tilt_up", "start": 2.5, "end": 3.2}])
    caption = say(clip(camera_label="static", camera_confidence=0.9, camera_spans=spans))
    assert caption.camera == "The camera holds still from 0.0 to 2.5 s."


def test_what_happens_twice_happens_again():
    caption = say(under_a_fixed_camera(lambda t: (0.5, 0.5, 0.3) if t < 1 or t > 2.5 else None))
    assert caption.dense == "Something moves, then stops. Then something moves again."


def test_a_picture_one_pixel_high_has_a_colour():
    assert colours([np.full((1, 512, 3), 120, np.uint8)]) == [("grey", 1.0)]
