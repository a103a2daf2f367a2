"""Selection is a pure function of scores and recipe, and says every reason."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.recipe import Bounds, Recipe, RecipeError, SelectOptions
from pipeline.selection import balance
from pipeline.selection.buckets import ASPECTS, bucket_names, bucket_size, with_durations
from pipeline.selection.select import select, splits
from pipeline.tables.fragments import id_prefix_u64

HEIGHTS = (1080, 720, 480, 360, 240)


def clips(n: int, **columns: Any) -> pa.Table:
    base: dict[str, Any] = {
        "clip_id": [hashlib.sha256(str(i).encode()).hexdigest()[:20] for i in range(n)],
        "source_id": [f"s{i}" for i in range(n)],
        "source_uri": [f"s{i}.mp4" for i in range(n)],
        "shot_index": pa.array(range(n), pa.int32()),
        "start": [0.0] * n,
        "end": [2.0] * n,
        "frames": pa.array([50] * n, pa.int32()),
        "crop_w": pa.array([1280] * n, pa.int32()),
        "crop_h": pa.array([720] * n, pa.int32()),
        "dropped": pa.array([None] * n, pa.string()),
    }
    return pa.table({**base, **columns})


def recipe(thresholds: dict[str, Bounds] | None = None, **options: Any) -> Recipe:
    return Recipe(select=SelectOptions(thresholds=thresholds or {}, **options))


def reasons(table: pa.Table) -> list[list[str]]:
    assert table["keep"].to_pylist() == [not r for r in table["rejected_by"].to_pylist()]
    return table["rejected_by"].to_pylist()


def test_every_threshold_that_is_not_met_is_a_reason() -> None:
    table = clips(
        4, motion=[0.5, 0.1, 0.9, 0.5], light=[100.0, 10.0, 100.0, 100.0], label=["pan", "pan", "static", "roll"]
    )
    thresholds = {
        "motion": Bounds(min=0.2, max=0.8),
        "light": Bounds(min=50),
        "label": Bounds(none_of=("static",), any_of=("pan", "roll")),
    }
    assert reasons(select(table, recipe(thresholds))) == [[], ["motion", "light"], ["motion", "label"], []]


def test_a_null_or_nan_is_out_unless_the_bounds_say_keep() -> None:
    table = clips(3, score=[1.0, None, float("nan")])
    assert reasons(select(table, recipe({"score": Bounds(min=0.5)}))) == [[], ["score"], ["score"]]
    assert reasons(select(table, recipe({"score": Bounds(min=0.5, missing="keep")}))) == [[], [], []]


def test_scores_that_a_filter_skipped_are_no_reason_beside_one_that_was_measured() -> None:
    table = clips(3, cheap=[0.0, 1.0, None], dear=[None, None, 1.0], dropped=[None, None, "duration"])
    thresholds = {"cheap": Bounds(min=0.5), "dear": Bounds(min=0.5)}
    assert reasons(select(table, recipe(thresholds))) == [["cheap"], ["dear"], ["duration"]]


def test_a_list_of_labels_needs_one_wanted_and_no_unwanted() -> None:
    table = clips(4, tags=[["dog", "grass"], ["cat"], ["dog", "screen"], None])
    bounds = Bounds(any_of=("dog", "horse"), none_of=("screen",))
    assert reasons(select(table, recipe({"tags": bounds}))) == [[], ["tags"], ["tags"], ["tags"]]


def test_bounds_admit_what_selection_keeps() -> None:
    values = [None, float("nan"), -1.0, 0.0, 0.5, 1.0, 2.0]
    for bounds in (Bounds(min=0.0), Bounds(max=1.0), Bounds(min=0.0, max=1.0, missing="keep")):
        kept = select(clips(len(values), score=values), recipe({"score": bounds}))["keep"].to_pylist()
        assert kept == [bounds.admit(value) for value in values]


@pytest.mark.parametrize(
    ("thresholds", "words"),
    [
        ({"moton_object": Bounds(min=1)}, "did you mean 'motion_object'"),
        ({"motio_null": Bounds(min=1)}, "is its filter in the recipe"),
        ({"labl": Bounds(any_of=("a",))}, "did you mean 'label'"),
        ({"zzz": Bounds(min=1)}, "is its filter in the recipe"),
        ({"motion_object": Bounds(any_of=("a",))}, "min or max"),
        ({"label": Bounds(min=1)}, "any_of or none_of"),
        ({"motion_times": Bounds(min=1)}, "list of numbers"),
    ],
)
def test_a_threshold_that_cannot_be_judged_stops_with_what_was_meant(thresholds: dict[str, Bounds], words: str) -> None:
    table = clips(1, motion_object=[1.0], label=["a"], motion_times=[[1.0]], motion_null=["few"])
    with pytest.raises(RecipeError, match=words):
        select(table, recipe(thresholds))


def test_caption_scores_are_asked_once_there_are_captions() -> None:
    hashes = pa.array([[0x9E3779B97F4A7C15], [0x9E3779B97F4A7C15], [0x0123456789ABCDEF], [3]], pa.list_(pa.uint64()))
    late, thresholds = {"similarity"}, {"motion": Bounds(min=0.5), "similarity": Bounds(min=0.2)}
    before = clips(4, motion=[1.0, 1.0, 1.0, 0.0], crop_w=[1280, 640, 1280, 1280], phash=hashes)
    first = select(before, recipe(thresholds), late, captioned=False)
    assert reasons(first) == [[], ["duplicates"], [], ["motion"]]
    after = before.append_column("caption", pa.array(["a", None, "b", None]))
    after = after.append_column("similarity", pa.array([0.1, None, 0.3, None]))
    # the copy of a clip whose caption failed stays out: it has no caption, and is no better
    assert reasons(select(after, recipe(thresholds), late)) == [["similarity"], ["duplicates"], [], ["motion"]]


def test_a_kept_clip_without_a_caption_is_out() -> None:
    table = clips(2, caption=["a dog runs", None], similarity=[0.5, None])
    assert reasons(select(table, recipe({"similarity": Bounds(min=0.2)}), {"similarity"})) == [[], ["caption"]]


def test_rejected_clips_do_not_knock_out_kept_ones() -> None:
    hashes = pa.array([[7 << 40], [7 << 40]], pa.list_(pa.uint64()))
    table = clips(2, crop_w=[1920, 640], crop_h=[1080, 360], score=[0.0, 1.0], phash=hashes)
    assert reasons(select(table, recipe({"score": Bounds(min=0.5)}))) == [["score"], []]


def test_two_copies_of_one_file_are_one_clip_even_when_duplicates_are_allowed() -> None:
    table = clips(3)
    ids = pa.array([table["clip_id"][0].as_py()] * 2 + [table["clip_id"][2].as_py()])
    table = table.set_column(0, "clip_id", ids)
    assert reasons(select(table, recipe(duplicates=False))) == [[], ["duplicates"], []]


def test_the_order_of_rows_changes_no_decision() -> None:
    random = np.random.default_rng(3)
    n = 60
    hashes = random.integers(1, 2**63, (n // 3, 4)).astype(np.uint64)[np.arange(n) % (n // 3)]
    table = clips(
        n,
        score=random.random(n),
        phash=pa.array(list(hashes), pa.list_(pa.uint64())),
        embedding=pa.array(
            [list(v) for v in random.normal(size=(n // 3, 8)).astype(np.float32)[np.arange(n) % (n // 3)]],
            pa.list_(pa.float32()),
        ),
        crop_w=pa.array(random.choice([640, 1280], n), pa.int32()),
    )
    options = recipe({"score": Bounds(min=0.2)}, balance_clusters=4, balance_cap=3)
    expected = select(table, options)
    order = pa.array(random.permutation(n))
    assert select(table.take(order), options).equals(expected.take(order))
    assert {"duplicates", "balance", "score"} == {r for rs in reasons(expected) for r in rs}


def test_an_empty_table_is_selected_to_an_empty_one() -> None:
    assert len(select(clips(3).slice(0, 0), recipe())) == 0


def test_selecting_again_replaces_what_was_decided() -> None:
    once = select(clips(2, score=[0.0, 1.0]), recipe({"score": Bounds(min=0.5)}))
    again = select(once, recipe({"score": Bounds(max=0.5)}))
    assert again.column_names == once.column_names
    assert reasons(again) == [[], ["score"]]


def test_all_clips_of_a_source_are_on_one_side_for_good() -> None:
    sources = pa.chunked_array([[f"source {i % 2000}" for i in range(6000)]])
    side = np.array(splits(sources, 0.05).to_pylist()).reshape(3, 2000)
    assert (side == side[0]).all()
    assert 0.03 < (side[0] == "val").mean() < 0.07
    more = np.array(splits(sources, 0.2).to_pylist())[:2000]
    assert (more[side[0] == "val"] == "val").all()


SIZES = {
    (1920, 1080): ("16x9-1080p", (1920, 1072)),
    (1280, 720): ("16x9-720p", (1280, 720)),
    (854, 480): ("16x9-480p", (848, 480)),
    (640, 360): ("16x9-360p", (640, 352)),
    (426, 240): ("16x9-240p", (416, 240)),
    (1080, 1920): ("9x16-1080p", (1072, 1920)),
    (1920, 800): ("21x9-720p", (1680, 720)),
    (1440, 1080): ("4x3-1080p", (1440, 1072)),
    (600, 600): ("1x1-480p", (480, 480)),
    (160, 120): ("4x3-112p", (144, 112)),
}


@pytest.mark.parametrize("picture", SIZES)
def test_usual_pictures_go_to_the_bucket_one_expects(picture: tuple[int, int]) -> None:
    name = bucket_names(np.array([picture[0]]), np.array([picture[1]]), np.array([False]), HEIGHTS)[0].as_py()
    assert (name, bucket_size(name)) == SIZES[picture]


@settings(max_examples=200)
@given(st.integers(16, 8000), st.integers(16, 8000), st.booleans())
def test_a_bucket_never_enlarges_and_cuts_off_little(width: int, height: int, still: bool) -> None:
    name = bucket_names(np.array([width]), np.array([height]), np.array([still]), HEIGHTS)[0].as_py()
    if name is None:
        assert min(width, height) < 38
        return
    w, h = bucket_size(name)
    assert w % 16 == h % 16 == 0
    assert w <= width
    assert h <= height
    assert name.endswith("-still") == still
    if 9 / 21 <= width / height <= 21 / 9 and min(width, height) >= 240:
        scale = max(w / width, h / height)
        assert (w * h) / (width * height * scale * scale) > 0.85


def test_buckets_by_duration_say_from_how_many_seconds_on() -> None:
    names, still = pa.array(["16x9-720p", "4x3-240p", "1x1-96p-still", None]), np.array([False, False, True, False])
    timed = with_durations(names, np.array([4.0, 3.9, 0.0, 9.0]), still, (8, 4))
    assert timed.to_pylist() == ["16x9-720p-4s", "4x3-240p-0s", "1x1-96p-still", None]
    assert bucket_size("16x9-720p-4s") == bucket_size("16x9-720p")
    assert with_durations(names, np.zeros(4), still, ()) is names


def test_bucket_sizes_keep_their_aspect_ratio() -> None:
    for aspect in ASPECTS:
        width, height = bucket_size(f"{aspect}-720p")
        a, b = (int(x) for x in aspect.split("x"))
        assert width / height == pytest.approx(a / b, rel=0.03)


def test_hex_words_keep_the_order_of_ids() -> None:
    ids = sorted(hashlib.sha256(str(i).encode()).hexdigest()[:20] for i in range(100))
    words = id_prefix_u64(pa.chunked_array([ids[:30], ids[30:]]))
    assert (np.diff(words.astype(object)) > 0).all()
    assert [int(w) for w in words] == [int(i[:16], 16) for i in ids]
    assert len(id_prefix_u64(pa.chunked_array([pa.array([], pa.string())]))) == 0


def test_clusters_find_groups_and_weights_even_them_out() -> None:
    random = np.random.default_rng(0)
    centres = np.eye(16)[:3]
    rows = np.repeat(centres, [400, 80, 20], axis=0) + random.normal(0, 0.05, (500, 16))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    labels = balance.clusters(rows.astype(np.float32), 3)
    assert all(len(set(labels[a:b])) == 1 for a, b in ((0, 400), (400, 480), (480, 500)))
    weights = balance.weights(labels)
    assert weights.mean() == pytest.approx(1)
    assert weights[499] / weights[0] == pytest.approx(np.sqrt(400 / 20))
    assert balance.over_cap(labels, np.arange(500), 50).sum() == 350 + 30
    assert balance.distribution(labels)["largest"] == pytest.approx(0.8)
    roots = np.sqrt([400, 80, 20])
    assert balance.distribution(labels, weights)["largest"] == pytest.approx(roots[0] / roots.sum(), rel=1e-5)


def test_a_decision_by_hand_overrules_scores_and_copies_but_not_what_cannot_be_packed() -> None:
    decisions = ["keep", "reject", "keep", None, "keep", "keep"]
    table = clips(
        6,
        motion=[0.1, 0.9, 0.9, 0.1, 0.9, None],
        crop_h=pa.array([720, 720, 8, 720, 720, 720], pa.int32()),
        caption=["a", "b", "c", "d", None, "f"],
        decision=pa.array(decisions, pa.string()),
    )
    selected = select(table, recipe({"motion": Bounds(min=0.2)}))
    assert reasons(selected) == [[], ["hand"], ["resolution"], ["motion"], ["caption"], []]


def test_a_clip_rejected_by_hand_is_not_rejected_for_a_caption_that_was_never_requested() -> None:
    table = clips(
        3, caption=[None, None, "c"], similarity=[None, None, 0.1], decision=pa.array(["reject", None, "reject"])
    )
    selected = select(table, recipe({"similarity": Bounds(min=0.5)}), late={"similarity"})
    assert reasons(selected) == [["hand"], ["caption"], ["similarity", "hand"]]


def test_a_copy_of_a_clip_rejected_by_hand_stays_out_and_one_kept_by_hand_stays_in() -> None:
    embedding = [[1.0, 0.0]] * 3
    for decisions, expected in (
        (["reject", None, None], [["hand"], ["duplicates"], ["duplicates"]]),
        ([None, "keep", None], [[], [], ["duplicates"]]),
    ):
        table = clips(3, embedding=embedding, phash=pa.array([[7]] * 3, pa.list_(pa.uint64())), decision=decisions)
        table = table.set_column(0, "clip_id", pa.array([f"{i:020x}" for i in range(3)]))
        assert reasons(select(table, recipe())) == expected


def test_the_scores_of_a_caption_that_a_person_wrote_are_not_judged() -> None:
    table = clips(2, caption=["a", "b"], similarity=[0.1, 0.1], caption_by=["hand", "model"])
    chosen = select(table, recipe({"similarity": Bounds(min=0.5)}), late={"similarity"})
    assert reasons(chosen) == [[], ["similarity"]]
