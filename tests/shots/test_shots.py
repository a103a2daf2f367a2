"""Transitions become shots and parts of shots by rules that do not depend on how a source was segmented."""

from __future__ import annotations

import math
from itertools import pairwise

import cv2
import numpy as np
import pytest
from footage.videos import pan, texture
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.media.proxy import Proxy, shrink
from pipeline.media.video import Video
from pipeline.shots.blend import blend, is_transition
from pipeline.shots.cascade import STARTED, Cascade
from pipeline.shots.detectors import Adaptive, Stride
from pipeline.shots.frame_features import unlike
from pipeline.shots.refine import refine
from pipeline.shots.same_scene import same_scene
from pipeline.shots.shot_cutter import LONGEST, Shot, ShotCutter, Transition, equal_parts, full_parts

END = 400.0


def shots_of(transitions, segment, step):
    """The shots of a source of END seconds that starts at 0, its transitions known with a delay of about `step`."""
    cutter = ShotCutter(segment)
    begin = max(0.0, ShotCutter.decode_from(segment[0])) if math.isfinite(segment[0]) else 0.0
    cutter.begin(begin, begin == 0.0)
    shots, pending = [], [t for t in transitions if t.leave >= begin]
    for now in np.arange(begin + step, END, step):
        detected = [t for t in pending if t.enter < now]
        pending = pending[len(detected) :]
        settled = min([now] + [t.leave for t in pending])
        shots += cutter.push(detected, settled)
        if cutter.done:
            return shots
    return shots + cutter.push(pending, END) + cutter.finish()


transitions_of = st.lists(st.tuples(st.integers(1, 3990), st.sampled_from([0, 0, 5, 20])), max_size=25).map(
    lambda items: [
        Transition(a / 10, (a + w) / 10)
        for (a, w), (b, _) in pairwise([*sorted(dict(items).items()), (4100, 0)])
        if a + w < b and a + w < 4000
    ]
)


@settings(deadline=None, max_examples=150)
@example([], [180.0], 0.7)
@given(transitions_of, st.lists(st.floats(1, END - 1), max_size=5), st.sampled_from([0.7, 3.0, 50.0]))
def test_shots_over_any_segmentation_are_those_of_one_piece(transitions, cuts, step):
    whole = shots_of(transitions, (-math.inf, math.inf), 1.0)
    edges = [-math.inf, *sorted(set(cuts)), math.inf]
    parts = [shot for segment in pairwise(edges) for shot in shots_of(transitions, segment, step)]
    assert parts == whole


@settings(deadline=None, max_examples=100)
@given(transitions_of)
def test_shots_and_transitions_tile_the_source(transitions):
    shots = shots_of(transitions, (-math.inf, math.inf), 1.0)
    edges = {t.leave: t.enter for t in transitions}
    assert shots[0].start == 0.0
    assert shots[-1].end == math.inf
    for shot, following in pairwise(shots):
        assert following.start == edges.get(shot.end, shot.end)
        assert shot.end <= shot.start + 2 * LONGEST
    assert set(edges) <= {shot.end for shot in shots} | {0.0}


def test_a_shot_without_transition_is_cut_on_a_grid():
    assert [s.start for s in shots_of([], (-math.inf, math.inf), 1.0)] == [0, 60, 120, 180, 240, 300, 360]
    with_one = shots_of([Transition(70, 72)], (-math.inf, math.inf), 1.0)
    assert with_one[:3] == [Shot(0, 60.0), Shot(60.0, 70), Shot(72, 180.0)]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(0.01, 0.5), min_size=1, max_size=80), st.floats(0.3, 20))
def test_parts_of_a_shot_are_nearly_equal_and_lose_nothing(gaps, longest):
    times = np.cumsum([0.0, *gaps]).tolist()
    end = times[-1] + 0.04
    parts = equal_parts(times, end, longest)
    assert [i for first, last in parts for i in range(first, last)] == list(range(len(times)))
    assert len(parts) == min(len(times), max(1, math.ceil((end - times[0]) / longest - 1e-6)))
    if len(parts) <= len(times) // 25:
        lengths = [(times[last] if last < len(times) else end) - times[first] for first, last in parts]
        assert max(lengths) - min(lengths) <= 2 * max(gaps) + 0.1


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(0.01, 0.5), min_size=1, max_size=80), st.floats(0.3, 20))
def test_full_parts_have_the_length_and_only_the_last_is_shorter(gaps, seconds):
    times = np.cumsum([0.0, *gaps]).tolist()
    parts = full_parts(times, times[-1] + 0.04, seconds)
    assert [i for first, last in parts for i in range(first, last)] == list(range(len(times)))
    for first, last in parts[:-1]:
        assert times[last - 1] < times[first] + seconds <= times[last] + 2e-6
    assert times[-1] < times[parts[-1][0]] + seconds


def test_equal_parts_of_one_frame():
    assert equal_parts([3.0], 3.04, 10.0) == [(0, 1)]
    assert equal_parts([0.0, 1.0, 2.0, 3.0], 4.0, 2.0) == [(0, 2), (2, 4)]
    assert len(equal_parts([0.0, 1.0], 2.0, 0.1)) == pytest.approx(2)


@pytest.mark.timeout(120)
def test_a_shot_whose_times_jump_by_years_is_cut_into_parts_at_once():
    year = 365 * 86400.0
    times = [jump * year + frame / 25 for jump in range(2) for frame in range(100_000)]
    assert [first for first, _ in equal_parts(times, times[-1] + 0.04, 10.0)] == list(range(200_000))


def shot(seed: int, frames: int) -> list[np.ndarray]:
    tint = [(1.0, 0.6, 0.4), (0.4, 0.7, 1.0), (0.7, 1.0, 0.5)][seed % 3]
    return pan((texture(seed, 108, 192) * tint).astype(np.uint8), frames, 0.8)


def detect(detector, frames, times=None, of=None) -> list[Transition]:
    """What a detector says of frames, or of those of them whose numbers are in `of`."""
    times = np.arange(len(frames)) / 25 if times is None else times
    transitions = []
    for index in range(len(frames)) if of is None else of:
        small = cv2.resize(frames[index], (48, 27), interpolation=cv2.INTER_AREA)
        transitions += detector.push(Proxy(index, float(times[index]), small))
    return transitions + detector.finish()


@pytest.mark.parametrize("make", [lambda: Cascade(25.0), Adaptive])
def test_hard_cuts_are_exact_to_the_frame_at_a_variable_rate(make):
    frames = shot(0, 50) + shot(1, 61) + shot(2, 47)
    times = np.cumsum(np.random.default_rng(0).choice([0.02, 0.033, 0.05], len(frames)))
    transitions = detect(make(), frames, times)
    assert transitions == [Transition(t, t) for t in times[[50, 111]]]


def test_cuts_between_reference_frames_are_placed_among_all_frames():
    frames = shot(0, 50) + shot(1, 62) + shot(2, 50)
    small = [cv2.resize(f, (48, 27), interpolation=cv2.INTER_AREA) for f in frames]
    gaps = []

    def between(after, before):
        gaps.append((after, before))
        return [Proxy(i, i / 25, s) for i, s in enumerate(small) if after < i / 25 < before]

    transitions = detect(Cascade(25.0, between), frames, of=range(0, len(frames), 4))
    assert transitions == [Transition(2.0, 2.0), Transition(4.48, 4.48)]
    assert max(before - after for after, before in gaps) <= 0.17
    assert len(set(gaps)) == len(gaps)  # each gap is decoded once


@pytest.mark.parametrize("count", [3, 5, 7])
def test_no_frame_of_a_dissolve_of_a_few_frames_is_in_a_shot(count):
    a, b, weights = shot(0, 75), shot(1, 75), np.linspace(0, 1, count + 2)[1:-1]
    mixed = [cv2.addWeighted(x, 1 - w, y, w, 0) for x, y, w in zip(a[50:], b[20:], weights, strict=False)]
    frames = a[:50] + mixed + b[20 + count :]
    small = [cv2.resize(f, (48, 27), interpolation=cv2.INTER_AREA) for f in frames]
    every = [Proxy(i, i / 25, s) for i, s in enumerate(small)]
    detector = Cascade(25.0, lambda after, before: [p for p in every if after < p.time < before])
    (transition,) = detect(detector, frames, of=range(0, len(frames), 3))
    assert 46 / 25 < transition.leave <= 50 / 25
    assert (50 + count - 1) / 25 < transition.enter <= (54 + count) / 25


@pytest.mark.parametrize("effect", ["dissolve", "fade"])
def test_a_gradual_transition_is_left_out_whole_and_little_else(effect):
    a, b = shot(0, 75), shot(1, 75)
    weight = np.linspace(0, 1, 27)[1:-1]
    if effect == "dissolve":
        mixed = [cv2.addWeighted(x, 1 - w, y, w, 0) for x, y, w in zip(a[-25:], b[:25], weight, strict=True)]
        frames, first, last = a[:-25] + mixed + b[25:], 50, 75
    else:
        down = [(x * (1 - w)).astype(np.uint8) for x, w in zip(a[-25:], weight, strict=True)]
        up = [(x * w).astype(np.uint8) for x, w in zip(b[:25], weight, strict=True)]
        frames, first, last = a[:-25] + down + up + b[25:], 50, 100
    transitions = detect(Cascade(25.0), frames)
    assert len(transitions) == 1
    assert first / 25 - 0.4 <= transitions[0].leave <= (first + 1) / 25
    assert (last - 1) / 25 <= transitions[0].enter <= last / 25 + 0.4


def test_a_cut_a_few_frames_after_a_dissolve_is_a_transition_of_its_own():
    a, b, c = shot(0, 75), shot(1, 30), shot(2, 75)
    weight = np.linspace(0, 1, 22)[1:-1]
    mixed = [cv2.addWeighted(x, 1 - w, y, w, 0) for x, y, w in zip(a[-20:], b[:20], weight, strict=True)]
    frames = a[:-20] + mixed + b[20:26] + c
    dissolve, cut = detect(Cascade(25.0), frames)
    assert 55 / 25 - 0.4 <= dissolve.leave <= 56 / 25
    assert cut == Transition(81 / 25, 81 / 25)


def test_two_dissolves_a_third_of_a_second_apart_are_two_transitions():
    a, b, c, weight = shot(0, 75), shot(1, 40), shot(2, 75), np.linspace(0, 1, 18)[1:-1]
    first = [cv2.addWeighted(x, 1 - w, y, w, 0) for x, y, w in zip(a[-16:], b[:16], weight, strict=True)]
    second = [cv2.addWeighted(x, 1 - w, y, w, 0) for x, y, w in zip(b[-16:], c[:16], weight, strict=True)]
    before, after = detect(Cascade(25.0), a[:-16] + first + b[16:-16] + second + c[16:])
    assert before.leave <= 60 / 25
    assert 74 / 25 <= before.enter <= after.leave <= 84 / 25
    assert after.enter >= 98 / 25


def blended(effect: str) -> tuple[np.ndarray, np.ndarray]:
    """Times and 60 small frames, in which frames 20 to 39 lead from one picture to another."""
    a, b = (cv2.resize(texture(seed), (48, 27), interpolation=cv2.INTER_AREA).astype(float) for seed in (3, 53))
    frames = []
    for share in np.clip((np.arange(60) - 19) / 21, 0, 1):
        if effect == "dissolve":
            frames.append((1 - share) * a + share * b)
        elif effect == "fade":
            frames.append(a * max(0.0, 1 - 2 * share) + b * max(0.0, 2 * share - 1))
        else:  # something passes before the camera, which turns meanwhile
            frames.append(np.roll(a, round(48 * share), axis=1))
            frames[-1][:, round(40 * share) : round(40 * share) + 20 * (0 < share < 1)] = 20
    return np.arange(60) / 25, np.stack(frames).round().astype(np.uint8)


@pytest.mark.parametrize("effect", ["dissolve", "fade"])
def test_pictures_that_blend_make_up_for_a_doubtful_network(effect):
    pictures = blend(*blended(effect), 0.8, 1.6)
    assert is_transition(0.7, 0.8, pictures)
    assert not is_transition(0.5, 0.8, pictures)
    assert not is_transition(0.7, 2.5, pictures), "longer than edited transitions are"


def test_pictures_that_move_are_a_transition_only_to_a_certain_network():
    pictures = blend(*blended("move"), 0.8, 1.6)
    assert pictures.off_line is not None
    assert pictures.off_line > 0.25
    assert not is_transition(0.85, 0.8, pictures)
    assert is_transition(0.999, 0.8, pictures)


def test_at_an_end_of_the_source_only_a_fade_or_certainty_counts():
    times, frames = blended("dissolve")
    assert not is_transition(0.95, 0.8, blend(times[20:], frames[20:], 0.8, 1.6))
    times, frames = blended("fade")
    assert is_transition(0.95, 0.8, blend(times[20:], frames[20:], 0.8, 1.6))


@pytest.mark.parametrize(("first", "last"), [(30, 50), (20, 55)])
@pytest.mark.parametrize("moved", [0.0, 0.15, -0.15])
@pytest.mark.parametrize("step", [1, 2])
def test_limits_that_are_known_roughly_are_found_to_a_few_frames_and_never_inside(first, last, moved, step):
    a, b = (cv2.resize(texture(seed), (48, 27), interpolation=cv2.INTER_AREA) for seed in (3, 53))
    share = np.clip((np.arange(75) - first + 1) / (last - first + 1), 0, 1)[:, None, None, None]
    frames, times = ((1 - share) * a + share * b).round().astype(np.uint8), np.arange(75) / 25
    leave, enter = refine(times[::step], frames[::step], first / 25 + moved, last / 25 - moved, STARTED)
    assert (first - 4) / 25 < leave <= first / 25
    assert (last - 1) / 25 < enter < (last + 3) / 25


@st.composite
def frames_at_any_times(draw):
    """Frames of a few flat or textured shots at times that repeat, stand still, and jump by a frame or by hours."""
    steps = draw(st.lists(st.sampled_from([0.0, 1e-6, 0.04, 0.04, 0.04, 0.2, 3.0, 7200.0]), min_size=0, max_size=160))
    times = draw(st.sampled_from([0.0, -5.0, 1e6])) + np.cumsum([0.0, *steps])
    shots = np.cumsum(draw(st.lists(st.integers(0, 1), min_size=len(times), max_size=len(times)))) // 20
    pictures = [
        texture(seed, 27, 48) if seed % 3 else np.full((27, 48, 3), 40 * seed % 256, np.uint8) for seed in range(9)
    ]
    mixed = draw(st.booleans())
    frames = [pictures[i % 9] for i in shots]
    if mixed:
        frames = [
            cv2.addWeighted(a, 0.5, b, 0.5, 0)
            for a, b in zip(frames, frames[len(frames) // 3 :] + frames, strict=False)
        ]
    return times, frames


@settings(deadline=None, max_examples=40)
@pytest.mark.parametrize("make", [lambda: Cascade(25.0), lambda: Cascade(0.2), Adaptive, lambda: Stride(2.0)])
@given(frames_at_any_times())
def test_every_transition_lies_between_the_first_and_the_last_frame_at_any_times(make, film):
    times, frames = film
    transitions = detect(make(), frames, times)
    for transition in transitions:
        assert times[0] <= transition.leave <= transition.enter <= times[-1]
    for transition, following in pairwise(transitions):
        assert transition.enter <= following.leave


def test_a_shot_after_a_transition_to_the_end_has_a_frame():
    a, b = shot(0, 75), shot(1, 75)
    for last in range(1, 40, 3):
        weight = np.linspace(0, 1, 32)[1:-1]
        mixed = [cv2.addWeighted(x, 1 - w, y, w, 0) for x, y, w in zip(a[-30:], b[:30], weight, strict=True)]
        frames = (a[:-30] + mixed + b[30:])[: 45 + last]
        for transition in detect(Cascade(25.0), frames):
            assert transition.enter <= (len(frames) - 1) / 25


def test_flashes_strobes_and_pans_are_no_transitions():
    flash, strobe = shot(0, 100), shot(1, 100)
    for i in (50, 51):
        flash[i] = cv2.addWeighted(flash[i], 0.2, np.full_like(flash[i], 255), 0.8, 0)
    for i in range(40, 64):
        if i // 2 % 2:
            strobe[i] = (strobe[i] * 0.4).astype(np.uint8)
    for frames in (flash, strobe, pan(texture(2, 108, 192), 100, 6.0)):
        assert detect(Cascade(25.0), frames) == []


def test_a_stride_cuts_at_its_multiples():
    transitions = detect(Stride(2.0), shot(0, 130))
    assert transitions == [Transition(t, t) for t in (2.0, 4.0)]


def test_transnet_finds_exact_cuts():
    from pipeline.shots.transnet import TransNet

    frames = shot(0, 60) + shot(1, 55) + shot(2, 60)
    whole = detect(TransNet(), frames)
    assert whole == [Transition(t, t) for t in (60 / 25, 115 / 25)]


def test_pictures_of_one_scene_are_told_from_those_across_a_cut(sample_videos):
    with Video(str(sample_videos["bikes"])) as video:
        pictures = [frame.rgb() for frame in video.frames()]
    for cut in (30, 76, 137, 187, 242):
        assert not same_scene(pictures[cut - 2], pictures[cut + 2])
    assert sum(same_scene(pictures[i], pictures[i + 4]) for i in (10, 50, 100, 160, 210)) >= 3  # cars pass


def test_light_and_motion_alone_make_no_other_scene():
    frame = texture(3, 27, 48)
    dark, moved = (frame * 0.5).astype(np.uint8), np.roll(frame, 9, axis=1)
    assert unlike(frame, dark)[0] < 0.1 < 0.5 < unlike(frame, dark)[1]
    assert unlike(frame, moved)[1] < 0.1 < 0.5 < unlike(frame, moved)[0]
    assert min(unlike(frame, texture(4, 27, 48))) > 0.5


@pytest.mark.parametrize("shape", [(1080, 1920), (2160, 3840), (720, 1280), (360, 640), (480, 854), (40, 60)])
@pytest.mark.parametrize("size", [(160, 90), (48, 27)])
def test_a_shrunken_plane_is_the_mean_of_what_it_covers(shape, size):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    plane = (255 * ((rows + 0.5) / shape[0] + (columns + 0.5) / shape[1]) / 2).round().astype(np.uint8)
    down, across = ((np.arange(n) + 0.5) / n for n in size[::-1])
    wanted = 255 * (down[:, None] + across) / 2
    inner = np.s_[2:-2, 2:-2]  # enlarged ones are flat beyond the outermost centres
    assert np.abs(shrink(plane, size)[inner] - wanted[inner]).max() <= 2.5
