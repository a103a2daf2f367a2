"""The explorer over HTTP, without a browser: who may ask, what is answered, what is written."""

from __future__ import annotations

import io
import json
import shutil
import threading
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from explorer_client import ids, opened_client
from starlette.testclient import TestClient

from pipeline.explore.app import PAGE, make_app
from pipeline.explore.catalog import Query
from pipeline.explore.explorer import Explorer
from pipeline.explore.vectors import Vectors
from pipeline.storage.store import Store
from pipeline.tables.decisions import read_decisions
from pipeline.tables.published import read_table

WRITING = {"x-clipmill-token": "w"}


@pytest.fixture(scope="module")
def client(explorer: Explorer) -> TestClient:
    return opened_client(explorer)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may need longer for the matrix of a search than the explorer waits."""
    monkeypatch.setattr("pipeline.explore.vectors.PATIENCE", 60.0)


@pytest.fixture(scope="module")
def table(explored: Path) -> list[dict]:
    clips = read_table(Store(str(explored)), "tables/clips")
    assert clips is not None
    return clips.to_pylist()


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/", {}, 403),
        ("/?token=wrong", {}, 403),
        ("/api/clips", {}, 403),
        ("/api/clips?token=t", {}, 403),  # the token opens the page only
        ("/?token=t", {"host": "evil.example"}, 421),
        ("/?token=t", {"host": "127.0.0.1.evil.example:8000"}, 421),
        ("/?token=t", {"host": "["}, 421),
        ("/?token=t", {"host": "user@evil.example"}, 421),
        ("/?token=t", {"host": "localhost:9999"}, 303),
        ("/?token=t", {"host": "[::1]:8000"}, 303),
    ],
)
def test_nobody_gets_in_without_the_address(explorer, path, headers, status):
    stranger = TestClient(make_app(explorer, "t", "w"), base_url="http://127.0.0.1:8000")
    assert stranger.get(path, headers=headers, follow_redirects=False).status_code == status


def test_the_cookie_is_out_of_reach_of_scripts_and_of_other_sites(explorer):
    stranger = TestClient(make_app(explorer, "t", "w"), base_url="http://127.0.0.1:8000")
    cookie = stranger.get("/?token=t", follow_redirects=False).headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "=t;" not in cookie


@pytest.mark.parametrize("path", ["/api/decisions", "/api/captions", "/api/pictures", "/api/search"])
def test_a_change_needs_the_second_token(client, path, explored):
    for headers in ({}, {"x-clipmill-token": "t"}):
        assert client.post(path, content=b"{}", headers=headers).status_code == 403
    assert not (explored / "decisions").exists()


def test_pages_run_no_foreign_script_and_are_not_framed(client):
    for path in ("/", *(f"/{name}" for name in PAGE[1:]), "/api/dataset"):
        answer = client.get(path)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/../dataset.json",
            "/dataset.json",
            "/media/..%2f..%2fdataset.json",
            "/thumbnails/%2e%2e",
            "/media/etc/passwd",
        ),
        *("/media/0000000000000000ffff", "/strips/zz", "/api/clips/" + "9" * 70),
    ],
)
def test_there_are_clips_of_the_dataset_and_no_other_paths(client, path):
    assert client.get(path).status_code == 404


def test_all_clips_are_there_in_the_order_of_the_table(client, table):
    answer = client.get("/api/clips").json()
    assert [clip["id"] for clip in answer["clips"]] == [row["clip_id"] for row in table]
    assert answer["total"] == len(table)
    assert answer["kept"] == sum(row["keep"] for row in table)
    assert [clip["caption"] for clip in answer["clips"]] == [row["caption"] for row in table]
    assert ids(client, offset=1, limit=2) == [row["clip_id"] for row in table[1:3]]
    assert ids(client, offset=999999999) == []


def test_filters_and_orders_are_those_of_the_table(client, table):
    median = sorted(row["motion_object"] or 0 for row in table)[len(table) // 2]
    wanted = [
        row for row in table if row["motion_object"] is not None and row["motion_object"] >= median and row["keep"]
    ]
    expected = [row["clip_id"] for row in sorted(wanted, key=lambda row: -row["motion_object"])]
    where = f"motion_object >= {median!r} AND keep"
    assert ids(client, where=where, sort="motion_object", descending=1) == expected
    assert ids(client, where="list_contains(rejected_by, 'duplicates')") == [
        row["clip_id"] for row in table if "duplicates" in row["rejected_by"]
    ]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"where": "motion_objekt > 1"}, 'Candidate bindings: "motion_object"'),
        ({"where": "keep; SELECT 1"}, "Parser Error"),
        ({"where": "caption > 3 + keep"}, "Error"),
        ({"sort": "clip_id; DROP"}, "no column"),
        ({"sort": "similarity"}, "no column"),
        ({"search": "picture:none"}, "the search is empty"),
        ({"search": "reference"}, "the search is empty"),
        ({"offset": "-1"}, "expected a number"),
    ],
)
def test_a_wrong_question_is_answered_with_its_reason(client, query, message):
    answer = client.get("/api/clips", params=query)
    assert answer.status_code == 400
    assert message in answer.json()["error"]


def test_a_clip_has_all_scores(client, table):
    row = next(row for row in table if row["keep"] and row["tags_labels"])
    clip = client.get(f"/api/clips/{row['clip_id']}").json()
    scores = {score["name"]: score for score in clip["scores"]}
    assert scores["tags_labels"]["text"] == ", ".join(row["tags_labels"])
    assert clip["source"] == row["source_uri"]
    assert "embedding" not in scores


def test_distributions_count_every_clip(client, table):
    funnel = client.get("/api/distribution?column=rejected_by").json()
    assert (funnel["total"], funnel["steps"][-1]["remaining"]) == (len(table), sum(row["keep"] for row in table))
    chart = client.get("/api/distribution?column=motion_object").json()
    assert chart["type"] == "histogram"
    labels = client.get("/api/distribution", params={"column": "camera_label", "where": "keep"}).json()
    assert sum(number for _, number in labels["bars"]) == sum(row["keep"] for row in table)
    assert client.get("/api/distribution?column=nothing").status_code == 400


def test_words_find_the_clip_that_similarity_says(client, table):
    answer = client.get("/api/clips", params={"search": "text:a rabbit", "sort": "similarity", "descending": 1}).json()
    assert answer["clips"][0]["title"] == "bigbuckbunny.mp4"
    values = [clip["similarity"] for clip in answer["clips"] if clip["similarity"] is not None]
    assert values == sorted(values, reverse=True)
    row = next(row for row in table if row["caption"] and row["similarity_clip"] is not None)
    answer = client.get("/api/clips", params={"search": f"text:{row['caption']}"}).json()
    (match,) = [clip for clip in answer["clips"] if clip["id"] == row["clip_id"]]
    assert match["similarity"] == pytest.approx(row["similarity_clip"], abs=2e-3)
    narrowed = ids(client, search="text:a rabbit", where=f"similarity >= {values[1]!r}")
    assert 1 <= len(narrowed) <= 3


def test_a_picture_and_a_clip_find_what_looks_alike(client, table):
    row = next(row for row in table if "bikes" in row["source_uri"] and row["keep"])
    picture = client.get(f"/thumbnails/{row['clip_id']}").content
    search = client.post("/api/pictures", content=picture, headers=WRITING).json()["search"]
    assert ids(client, search=search, sort="similarity", descending=1)[0] == row["clip_id"]
    assert ids(client, search=f"clip:{row['clip_id']}", sort="similarity", descending=1)[0] == row["clip_id"]
    refused = client.post("/api/pictures", content=b"no picture", headers=WRITING)
    assert (refused.status_code, refused.json()["error"]) == (400, "not a picture that can be decoded")


def test_kept_clips_are_the_bytes_of_the_shard_and_can_be_read_in_ranges(client, table):
    row = next(row for row in table if row["keep"])
    whole = client.get(f"/media/{row['clip_id']}")
    with av.open(io.BytesIO(whole.content)) as container:
        assert len(list(container.decode(video=0))) == row["frames"]
    size = len(whole.content)
    assert whole.headers["accept-ranges"] == "bytes"
    for header, start, end in (
        ("bytes=10-19", 10, 20),
        ("bytes=-5", size - 5, size),
        (f"bytes={size - 3}-", size - 3, size),
    ):
        part = client.get(f"/media/{row['clip_id']}", headers={"range": header})
        assert (part.status_code, part.content) == (206, whole.content[start:end])
        assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
    assert client.get(f"/media/{row['clip_id']}", headers={"range": f"bytes={size}-"}).status_code == 416
    for odd in ("bytes=0-1,3-4", "lines=1-2", "bytes=x-", "bytes=-"):
        assert client.get(f"/media/{row['clip_id']}", headers={"range": odd}).content == whole.content


def test_a_rejected_clip_is_cut_out_of_its_source(client, table):
    row = next(row for row in table if not row["keep"] and row["frames"] > 1)
    with av.open(io.BytesIO(client.get(f"/media/{row['clip_id']}").content)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == row["frames"]
    assert min(frames[0].shape[:2]) <= 360


def test_thumbnails_and_strips_are_pictures_of_the_clip(client, table):
    for row in table:
        small = cv2.imdecode(np.frombuffer(client.get(f"/thumbnails/{row['clip_id']}").content, np.uint8), 1)
        assert max(small.shape[:2]) <= 360
        strip = cv2.imdecode(np.frombuffer(client.get(f"/strips/{row['clip_id']}").content, np.uint8), 1)
        assert strip.shape[1] >= small.shape[1] * strip.shape[0] // small.shape[0]


def test_decisions_are_written_at_once_shown_at_once_and_can_be_undone(client, explored, table):
    kept = next(row for row in table if row["keep"])
    store = Store(str(explored))
    post = lambda path, body: client.post(path, json=body, headers=WRITING)  # noqa: E731
    (card,) = post("/api/decisions", {"clips": [kept["clip_id"]], "decision": "reject"}).json()["clips"]
    assert card["decision"] == "reject"
    (row,) = read_decisions(store).to_pylist()
    assert (row["clip_id"], row["decision"], row["base_reasons"]) == (kept["clip_id"], "reject", [])
    assert (row["base_caption"], row["start"]) == (kept["caption"], kept["start"])
    assert ids(client, where="decision = 'reject'") == [kept["clip_id"]]
    post("/api/captions", {"clip": kept["clip_id"], "caption": "  A <b>written</b>\ncaption. "})
    (row,) = read_decisions(store).to_pylist()
    assert (row["decision"], row["caption"]) == ("reject", "A <b>written</b> caption.")
    for where in ("caption = 'A <b>written</b> caption.'", "edited"):
        assert ids(client, where=where) == [kept["clip_id"]]
    post("/api/decisions", {"clips": [kept["clip_id"]], "decision": None})
    post("/api/captions", {"clip": kept["clip_id"], "caption": None})
    assert read_decisions(store).num_rows == 0
    assert client.get(f"/api/clips/{kept['clip_id']}").json()["caption"] == kept["caption"]
    assert ids(client, where="decision IS NOT NULL") == []


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/decisions", {"clips": ["0" * 20], "decision": "keep"}, 404),
        ("/api/decisions", {"clips": "all", "decision": "keep"}, 400),
        ("/api/decisions", {"clips": [], "decision": "delete"}, 400),
        ("/api/decisions", [], 400),
        ("/api/captions", {"clip": 5, "caption": "x"}, 400),
        ("/api/captions", {"clip": "0" * 20, "caption": "x" * 30000}, 400),
    ],
)
def test_a_wrong_decision_writes_nothing(client, explored, path, body, status):
    before = sorted((explored / "decisions").glob("*"))
    assert client.post(path, content=json.dumps(body), headers=WRITING).status_code == status
    assert sorted((explored / "decisions").glob("*")) == before


def test_two_explorers_see_each_others_decisions_and_lose_none(explorer, explored, table, monkeypatch):
    monkeypatch.setattr("pipeline.tables.decisions.REREAD_SECONDS", 0.0)
    other = Explorer(Store(str(explored)))
    try:
        first, second, third = (row["clip_id"] for row in table[:3])
        explorer.decide([first], "keep")
        other.decide([second], "reject")
        explorer.decide([third], "reject")
        other.edit_caption(first, "Of both.")
        rows = {row["clip_id"]: row for row in read_decisions(Store(str(explored))).to_pylist()}
        assert {clip: row["decision"] for clip, row in rows.items()} == {
            first: "keep",
            second: "reject",
            third: "reject",
        }
        assert rows[first]["caption"] == "Of both."
        assert explorer.clip(second)["decision"] == "reject"
    finally:
        explorer.decide([first, second, third], None)
        explorer.edit_caption(first, None)
        other.close()


def test_a_dataset_without_clips_has_an_empty_page(golden_dataset, tmp_path):
    dataset = shutil.copytree(golden_dataset, tmp_path / "dataset")
    info = json.loads((dataset / "dataset.json").read_text())
    path = dataset / info["tables"]["clips"][0]
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    (dataset / "dataset.json").write_text(json.dumps(info | {"rows": info["rows"] | {"clips": 0}}))
    explorer = Explorer(Store(str(dataset)))
    assert explorer.clips(Query("keep", "motion_object"), 0, 60) == {"total": 0, "kept": 0, "hours": 0, "clips": []}
    assert explorer.distribution("rejected_by", Query())["steps"] == []
    assert explorer.distribution("motion_object", Query())["missing"] == 0
    explorer.close()


def test_a_build_meanwhile_is_noticed(golden_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.explore.explorer.RECHECK_SECONDS", 0.0)
    dataset = shutil.copytree(golden_dataset, tmp_path / "dataset")
    explorer = Explorer(Store(str(dataset)))
    clips = explorer.describe()["clips"]
    table = read_table(Store(str(dataset)), "tables/clips")
    pq.write_table(table.slice(1), dataset / "tables/clips/00000-new.parquet")  # as a build that loses a clip would
    info = json.loads((dataset / "dataset.json").read_text())
    (dataset / info["tables"]["clips"][0]).unlink()
    info["tables"]["clips"], info["rows"]["clips"] = ["tables/clips/00000-new.parquet"], clips - 1
    (dataset / "dataset.json").write_text(json.dumps(info))
    assert explorer.describe()["clips"] == clips - 1
    assert explorer.clips(Query(), 0, 60)["total"] == clips - 1
    explorer.close()


def test_a_decision_of_a_clip_that_is_gone_is_listed(explorer, explored, monkeypatch):
    monkeypatch.setattr("pipeline.tables.decisions.REREAD_SECONDS", 0.0)
    gone = {"clip_id": "f" * 20, "source_uri": "/old.mp4", "decision": "keep"}
    path = explored / "decisions" / "by-script.parquet"
    pq.write_table(pa.Table.from_pylist([gone]), path)  # as a script may write it
    assert [lost["source_uri"] for lost in explorer.describe()["vanished"]] == ["/old.mp4"]
    path.unlink()


def test_a_search_that_waits_for_its_embeddings_says_how_far_they_are(explored, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("pipeline.explore.vectors.PATIENCE", 0.0)
    gate = threading.Event()
    read = Vectors._semantic_parts
    monkeypatch.setattr(Vectors, "_semantic_parts", lambda self: (part for part in read(self) if gate.wait()))
    explorer = Explorer(Store(str(explored)))
    try:
        client = opened_client(explorer)
        waiting = client.get("/api/clips", params={"search": "text:a rabbit"})
        assert (waiting.status_code, waiting.json()) == (202, {"waiting": "reading the embeddings of the clips, 0%"})
        assert len(ids(client, where="keep")) > 1  # the page works meanwhile
        gate.set()
        explorer._vectors._matrix("semantic").result()
        assert len(ids(client, search="text:a rabbit")) > 1
    finally:
        gate.set()
        explorer.close()
