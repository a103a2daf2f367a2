"""The audit finds what is wrong with a caption, repairs it without inventing, and lets good captions through."""

import dataclasses
import functools
import json

import pytest
from footage import measured_clip
from hypothesis import given, settings
from hypothesis import strategies as st

from captioners.base import Action, Caption
from captioners.measured.measured import Measured
from captioners.text.audit import AUDIT_COLUMNS, audit
from captioners.text.claims import claims
from captioners.text.prompt import read_answer
from captioners.text.text_quality import check_form, is_english

clip = functools.partial(measured_clip.clip, 6.0)


def right_then_left(t):
    if t < 2.4:
        return 0.1 + 0.35 * t, 0.5, 0.35
    return (0.9 - 0.35 * (t - 3.6), 0.5, 0.35) if t > 3.6 else None


WALK = clip(lambda t: (0.1 + 0.14 * t, 0.5, 0.2), camera_label="static", camera_confidence=0.95, exposure_luma=0.55)
PAN = clip(camera_label="pan_left", camera_confidence=0.95)
PAN_THEN_STILL = clip(
    camera_label="pan_left",
    camera_confidence=0.95,
    camera_spans=json.dumps([{"label": "pan_left", "start": 0, "end": 4}, {"label": "static", "start": 4, "end": 6}]),
)
SHORT_WALK = clip(lambda t: (0.1 + 0.3 * t, 0.5, 0.4) if t < 2 else None)
TWO = clip(right_then_left, camera_label="static", camera_confidence=0.95)
GOOD = Caption(
    "clip",
    "A brown dog walks from left to right across a lawn.",
    "A brown dog walks from left to right across a lawn. Then it sniffs a wooden fence. The camera stays still.",
    ("a brown dog",),
    (Action("a brown dog walks from left to right", 0.0, 4.0), Action("it sniffs a wooden fence", 4.0, 6.0)),
    "The camera stays still.",
)


def caption_of(dense, **fields):
    return dataclasses.replace(GOOD, short=dense.split(".")[0] + ".", dense=dense, actions=(), camera="", **fields)


def test_a_good_caption_passes_unchanged_with_every_column():
    result = audit(GOOD, WALK)
    assert result.caption == GOOD
    assert result.rejected is None
    assert set(result.score) == set(AUDIT_COLUMNS)
    assert result.score["audit_contradictions"] == 0
    assert result.score["audit_reasons"] == []
    assert result.score["audit_missed"] == 0.0


@pytest.mark.parametrize(
    ("text", "topic", "value"),
    [
        ("The camera slowly pans to the left.", "camera", "pan_left"),
        ("A panning shot sweeps right over the bay.", "camera", "pan_right"),
        ("The shot zooms in on her face.", "camera", "zoom_in"),
        ("The camera dollies out from the car.", "camera", "zoom_out"),
        ("The camera tilts upward.", "camera", "tilt_up"),
        ("A static shot of a road.", "camera", "static"),
        ("Filmed handheld.", "camera", "handheld"),
        ("A cyclist rides from the right side of the road to the left.", "direction", "left"),
        ("Two cars drive past, left to right.", "direction", "right"),
        ("A horse gallops leftward.", "direction", "left"),
        ("A boy runs quickly towards the right.", "direction", "right"),
        ("The balloon floats up; it goes slowly upwards.", "direction", "up"),
        ("The man stands still.", "still", "still"),
        ("The scene changes to a beach.", "scenes", "scenes"),
    ],
)
def test_claims_are_read_from_plain_sentences(text, topic, value):
    assert (topic, value) in {(c.topic, c.value) for c in claims(text)}


@pytest.mark.parametrize(
    "text",
    [
        "A man has left the house.",
        "She raises her right hand.",
        "A tree stands on the left.",
        "The camera moves with the runner.",
        "A pan sizzles on the stove.",
        "A dog runs to the left of the tree.",
        "Mist rises from a waterfall.",
    ],
)
def test_other_uses_of_the_same_words_are_no_claims(text):
    assert not [c for c in claims(text) if c.topic in ("camera", "direction")]


@pytest.mark.parametrize(
    ("dense", "scene", "topic"),
    [
        ("A dog walks across a lawn from right to left. A fence stands behind it.", WALK, "direction"),
        ("A dog walks over a lawn. The camera pans to the left.", WALK, "camera"),
        ("A wide street lies empty. The camera pans right over it.", PAN, "camera"),
        ("A wide street lies empty. A static camera shows it.", PAN, "camera"),
        ("A dog stays completely still on a lawn. A fence stands behind it.", WALK, "still"),
        ("A cyclist rides past a house. The house has a red door.", PAN, "motion"),
        ("An empty room. The camera stays still, then it stops at a window.", PAN_THEN_STILL, "camera"),
        ("An empty room. The camera pans left, then stays still.", PAN_THEN_STILL, None),
        ("A dog runs over a lawn. It stays completely still.", SHORT_WALK, "still"),
        ("A dog runs over a lawn. A tree stands still.", SHORT_WALK, None),
        ("A dog walks over a lawn. Then the scene cuts to a beach.", WALK, "scenes"),
    ],
)
def test_contradictions_are_found_and_their_sentences_removed(dense, scene, topic):
    result = audit(caption_of(dense), scene)
    if topic is None:
        assert result.score["audit_contradictions"] == 0
        return
    assert any(reason.startswith(f"{topic}:") for reason in result.score["audit_reasons"])
    if result.caption is not None:
        again = audit(result.caption, scene)
        assert again.score["audit_contradictions"] == 0
        assert again.caption == result.caption


def test_a_wrong_camera_is_replaced_by_the_measured_one():
    result = audit(caption_of("A wide street lies empty. The camera pans right over it.", provenance={}), PAN)
    assert result.caption.dense == "A wide street lies empty. The camera pans left."
    with_field = audit(
        dataclasses.replace(caption_of("A wide street lies empty."), camera="The camera zooms out."), clip()
    )
    assert with_field.caption.camera == "The camera zooms out.", "nothing was measured, nothing is contradicted"
    with_field = audit(dataclasses.replace(caption_of("A wide street lies empty."), camera="Static camera."), PAN)
    assert with_field.caption.camera == "The camera pans left."
    assert with_field.caption.provenance["camera"] == "measured: camera"


def test_a_clause_goes_and_the_rest_of_the_sentence_stays():
    result = audit(caption_of("The camera holds still; something crosses from right to left."), WALK)
    assert result.caption.dense == "The camera holds still."


def test_telling_events_the_wrong_way_round_rejects():
    right = caption_of("A ball rolls from left to right. Then it rolls from right to left.")
    wrong = caption_of("A ball rolls from right to left. Then it rolls from left to right.")
    assert audit(right, TWO).rejected is None
    assert audit(wrong, TWO).rejected.startswith("order:")
    actions = (Action("the dog sniffs a fence", 4.0, 6.0), Action("the dog digs a hole", 0.0, 3.0))
    caption = dataclasses.replace(caption_of("The dog sniffs a fence. Then the dog digs a hole."), actions=actions)
    assert audit(caption, WALK).rejected.startswith("order:")


def test_a_peak_of_motion_without_an_action_is_counted():
    half = dataclasses.replace(GOOD, actions=(Action("a ball rolls right", 0.0, 2.5),))
    assert audit(half, TWO).score["audit_missed"] == pytest.approx(0.5)
    assert audit(caption_of(GOOD.dense), TWO).score["audit_missed"] is None


def test_actions_outside_the_clip_are_cut_or_dropped():
    actions = (Action("a dog walks", -1.0, 4.0), Action("a dog sleeps", 7.0, 9.0))
    result = audit(dataclasses.replace(GOOD, actions=actions), WALK)
    assert result.caption.actions == (Action("a dog walks", 0.0, 4.0),)
    assert any("not inside the clip" in reason for reason in result.score["audit_reasons"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("I'm sorry, but I can't describe this video.", "refusal"),
        ("A dog runs. " + "it runs and runs and " * 6, "repeats itself"),
        ('{"short": "A dog', "markup in the text"),
        ("Ein brauner Hund läuft über eine grüne Wiese und setzt sich dann neben einen Zaun.", "not English"),
        ("?? 12 // x9 }}", "not words"),
        ("Dog.", "not words"),
        ("一只狗在草地上奔跑。", "not English"),
        ("A brown dog that walks over the lawn and then " * 1 + "and so it goes on and " * 14, "repeats itself"),
    ],
)
def test_unusable_text_is_rejected_with_a_reason(text, reason):
    assert audit(dataclasses.replace(GOOD, dense=text), WALK).rejected == reason


def test_the_prompt_read_back_is_rejected():
    prompt = "Describe what happens in this clip as a list of actions in order of time with start and end."
    text = "Describe what happens in this clip as a list of actions in order."
    assert check_form(text, prompt).rejected == "repeats the prompt"


@pytest.mark.parametrize(
    ("text", "repaired"),
    [
        ("The video shows a dog on a lawn.", "A dog on a lawn."),
        ("In this video, a dog runs over a lawn.", "A dog runs over a lawn."),
        ("Here is a detailed caption of the clip: A dog runs.", "A dog runs."),
        ("A dog runs. A dog runs. It sits down.", "A dog runs. It sits down."),
        ("A dog runs over a lawn. Then it goes to the", "A dog runs over a lawn."),
        ("A dog runs", "A dog runs."),
    ],
)
def test_form_is_repaired_without_new_words(text, repaired):
    assert check_form(text).text == repaired


def test_english_needs_no_long_text():
    assert is_english("Surfer, waves.")
    assert not is_english("Собака бежит по траве")


def test_what_the_measured_captioner_says_is_never_contradicted():
    scenes = [
        WALK,
        PAN,
        TWO,
        clip(lambda t: (0.5, 0.9 - 0.13 * t, 0.5)),
        clip(
            lambda t: (0.8, 0.2, 0.4) if t > 3 else None,
            camera_label="pan_left",
            camera_confidence=0.9,
            camera_spans=json.dumps(
                [{"label": "pan_left", "start": 0, "end": 3}, {"label": "static", "start": 3, "end": 6}]
            ),
        ),
    ]
    for scene, caption in zip(scenes, Measured().caption(scenes), strict=True):
        result = audit(caption, scene)
        assert result.score["audit_contradictions"] == 0, (caption.dense, result.score["audit_reasons"])
        assert result.score["audit_defects"] == 0
        assert result.caption == caption


PIECES = [
    "The camera pans left.",
    "The camera holds still; something crosses from right to left, then stops.",
    "A dog runs to the right",
    "while the camera zooms in.",
    "Then it stands still.",
    "The scene cuts to a beach.",
    "In this video, we see a man",
    "from left to right.",
    "at night",
    "Nothing moves.",
    "I'm sorry",
    '{"short": "a"}',
    "\n",
    "0-2 s: a dog runs",
    "- [1.0s - 9.5s] a cat sleeps",
    "```",
    '"',
    "是",
]


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=12), max_size=8), st.sampled_from([WALK, PAN, TWO]))
@settings(max_examples=150, deadline=None)
def test_whatever_is_said_the_audit_ends_and_what_it_keeps_it_would_keep_again(pieces, scene):
    text = " ".join(pieces)
    answer = read_answer(scene, text, ended=True)
    caption = answer if isinstance(answer, Caption) else caption_of(text or ".")
    result = audit(caption, scene)
    assert set(result.score) == set(AUDIT_COLUMNS)
    assert (result.caption is None) == (result.rejected is not None)
    if result.caption is not None:
        again = audit(result.caption, scene)
        assert again.rejected is None, (result.caption, again.score["audit_reasons"])
        assert again.score["audit_contradictions"] == 0, (result.caption, again.score["audit_reasons"])


@given(st.text(alphabet='{}[]",:\\ab1 ', max_size=60), st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_answer_is_read_into_bounded_fields_or_a_reason(text, ended):
    answer = read_answer(WALK, '{"dense": "A dog runs over a lawn.", "actions": ' + text, ended)
    if isinstance(answer, Caption):
        assert len(answer.dense) <= 2400
        assert all(0 <= a.start < a.end <= WALK.duration for a in answer.actions)
    else:
        assert answer.reason
