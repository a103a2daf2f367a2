"""Canaries: made the same every time, scored like any clip, caught by the filters that are there for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config import recipe
from pipeline.dataset.finish import counts
from pipeline.media.video import Video
from pipeline.report.summary import summary
from pipeline.scan.scan import scan
from pipeline.selection.select import select
from pipeline.sources import canaries, discover
from pipeline.tables.fragments import SOURCES

RECIPE = recipe.from_dict(
    {
        "filters": {"borders": {}, "exposure": {}, "motion": {}},
        "scan": {"shots": "adaptive"},
        "select": {
            "duplicates": False,
            "thresholds": {
                "borders_area": {"min": 0.6},
                "exposure_luma": {"min": 0.06, "max": 0.94},
                "motion_object": {"min": 0.01},
            },
        },
    }
)
PLANTED = ("clean", "frozen", "black", "overexposed", "letterboxed", "watermark", "cut")


@pytest.fixture(scope="module")
def judged() -> pa.Table:
    """The planted clips and a real one's row, scanned, selected and marked as a build would."""
    rows = []
    for found in discover.discover([canaries.SCHEME + name for name in PLANTED]):
        rows += scan(discover.Source(discover.content_id(found.uri), found.uri), RECIPE).clips
    clean = next(row for row in rows if row["source_uri"] == "canary://clean")
    rows.append({**clean, "clip_id": "f" * 20, "source_uri": "/raw/real.mp4"})
    table = pa.Table.from_pylist(rows)
    dropped = table.column_names.index("dropped")
    return select(table.set_column(dropped, "dropped", table["dropped"].cast(pa.string())), RECIPE)


def test_each_defect_is_caught_by_its_filter_and_the_clean_clip_is_not(judged: pa.Table) -> None:
    found = {one.name: one for one in canaries.recall(judged, RECIPE.select.thresholds)}
    assert found["clean"].result == "kept"
    assert {
        name: found[name].result for name in ("frozen", "black", "overexposed", "letterboxed", "cut")
    } == dict.fromkeys(("frozen", "black", "overexposed", "letterboxed", "cut"), "caught")
    assert found["letterboxed"].reasons == ("borders_area",)
    assert found["watermark"].result == "not asked"
    assert canaries.recall(judged)[list(found).index("watermark")].result == "missed"
    assert found["shaky"].result == "not found"


def test_no_canary_is_kept_and_every_other_clip_is_as_it_was(judged: pa.Table) -> None:
    kept = judged.filter(judged["keep"])
    assert kept["source_uri"].to_pylist() == ["/raw/real.mp4"]
    real = canaries.without_canaries(judged)
    assert real["rejected_by"].to_pylist() == [[]]
    planted = judged.filter(canaries.is_canary(judged))
    assert all(canaries.MARK in reasons for reasons in planted["rejected_by"].to_pylist())


@pytest.mark.parametrize(("kept_copy", "rejected"), [("clean", "copy"), ("copy", "clean")])
def test_whichever_copy_goes_the_duplicate_is_caught(kept_copy: str, rejected: str) -> None:
    rows = [
        {"source_uri": f"canary://{kept_copy}", "start": 0.0, "end": 2.5, "rejected_by": ["canary"]},
        {"source_uri": f"canary://{rejected}", "start": 0.0, "end": 2.5, "rejected_by": ["duplicates", "canary"]},
    ]
    found = {one.name: one.result for one in canaries.recall(pa.Table.from_pylist(rows))}
    assert (found["clean"], found["copy"]) == ("kept", "caught")


def test_a_canary_rejected_for_another_reason_is_told_from_one_that_is_caught() -> None:
    rows = [{"source_uri": "canary://black", "start": 0.0, "end": 2.5, "rejected_by": ["motion_object", "canary"]}]
    assert canaries.recall(pa.Table.from_pylist(rows))[list(canaries.CANARIES).index("black")].result == "rejected"


def test_the_same_name_gives_the_same_file_that_decodes_to_what_is_said(tmp_path: Path) -> None:
    assert canaries.video("noisy") == canaries.video("noisy")
    path = tmp_path / "clean.avi"
    path.write_bytes(canaries.video("clean"))
    with Video(str(path)) as video:
        frames = [frame.rgb() for frame in video.frames()]
        assert (video.probe.width, video.probe.height, video.probe.duration) == (480, 270, 2.5)
    assert len(frames) == 60
    assert np.abs(frames[0][..., ::-1].astype(int) - canaries.scene("clean")[0]).mean() < 6


def test_every_canary_but_the_clean_one_has_a_defect() -> None:
    clean = canaries.scene("clean")
    for name, canary in canaries.CANARIES.items():
        made = canary.make(clean.copy())
        assert made.shape == clean.shape
        assert made.dtype == np.uint8
        assert (made != clean).any() == (name != "clean"), name


def test_canaries_are_scenes_of_their_own_but_for_the_copy() -> None:
    clean = canaries.scene("clean")[0]
    assert np.array_equal(canaries.scene("copy")[0], clean)
    assert np.abs(canaries.scene("frozen")[0].astype(int) - clean).mean() > 20


def test_an_unknown_canary_is_an_unreadable_source() -> None:
    with pytest.raises(FileNotFoundError, match="there are clean, frozen"):
        discover.open_media("canary://none")


def test_a_build_plants_them_only_when_asked_and_counts_them_nowhere(judged: pa.Table) -> None:
    assert canaries.planted(RECIPE) == []
    asked = canaries.planted(recipe.from_dict({"canaries": True}))
    assert [found.uri for found in discover.discover(asked)] == sorted(asked)
    rows = [{"source_uri": uri, "status": "ok", "duration": 2.5} for uri in ["/raw/real.mp4", *asked]]
    table = judged.append_column("caption", pa.nulls(len(judged), pa.string()))
    found = counts(pa.Table.from_pylist(rows), table)
    assert (found["sources"], found["clips"], found["kept"], found["rejected_by"]) == (1, 1, 1, {})


def test_a_builds_closing_table_says_what_was_caught(judged: pa.Table) -> None:
    results = {one.name: one.result for one in canaries.recall(judged, RECIPE.select.thresholds)}
    clips = judged.append_column("caption", pa.nulls(len(judged), pa.string()))
    info = {"counts": counts(SOURCES.empty_table(), clips),
            "shards": [], "passes": {}, "canaries": results}  # fmt: skip
    lines = [line for line in summary("out", info).splitlines() if line.startswith("canaries")]
    assert lines == ["canaries  5 of 5 caught by the filter meant for them"]
    info["canaries"] = {**results, "black": "rejected"}
    assert "4 of 5 caught by the filter meant for them (not black)" in summary("out", info)
    info["canaries"] = {}
    assert "canaries" not in summary("out", info)
