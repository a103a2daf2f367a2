"""Costs of `clipmill explore` on a large dataset: seconds of each response over HTTP, CPU seconds, and peak memory.

    python tests/benchmarks/builds/explore_scale.py [CLIPS [DIMENSIONS]]

Clips are synthetic: 30 scores, reasons, captions, and embeddings of one frame with DIMENSIONS (default 384, as of the
embedded recipe's encoder). The second line of a request has another value, so that caches do not apply.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import report_scale
from starlette.testclient import TestClient

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))

from filters.encoders.base import load_encoder  # noqa: E402
from pipeline.explore.app import make_app  # noqa: E402
from pipeline.explore.explorer import Explorer  # noqa: E402
from pipeline.state.fingerprints import embed_fingerprint  # noqa: E402
from pipeline.storage.store import Store  # noqa: E402
from pipeline.tables.fragments import DONE  # noqa: E402

LOOKS = 256  # dimensions of the appearance
QUESTIONS = {
    "first page": "",
    "page 5000": "offset=300000",
    "filter by a score": "where=f3_score > 0.5 AND keep",
    "filter by a caption": "where=caption ILIKE '%pans left%' AND f4_score < 0.9",
    "sort by a score": "sort=f7_score&descending=1",
    "filter and sort": "where=f5_score > 0.25&sort=f8_score",
    "sort by a text": "sort=source_uri&descending=1",
    "text search": "search=text:a dog on a beach&sort=similarity&descending=1",
    "another text search": "search=text:two cars in the rain&sort=similarity&descending=1",
    "search and filter": "search=text:two cars in the rain&sort=similarity&where=keep AND similarity > 0.1",
}


def add_embeddings(folder: Path, dimensions: int) -> None:
    """Add to a dataset of `report_scale.make` what searches read: `embedding`, and fragments of the embed pass."""
    rng = np.random.default_rng(1)
    done = {DONE: b'{"fingerprint": "%s"}' % embed_fingerprint(report_scale.RECIPE).encode()}
    (folder / "state/embed").mkdir(parents=True)
    for path in sorted((folder / "tables/clips").glob("*.parquet")):
        table = pq.read_table(path)
        with (
            pq.ParquetWriter(path, table.schema.append(pa.field("embedding", pa.list_(pa.float32())))) as clips,
            pq.ParquetWriter(
                folder / "state/embed" / path.name,
                pa.schema([("clip_id", pa.string()), ("frame_embeddings", pa.binary())], done),
            ) as embedded,
        ):
            for batch in table.to_batches(max_chunksize=100_000):
                looks = rng.standard_normal((len(batch), LOOKS), np.float32) / LOOKS**0.5
                offsets = np.arange(0, looks.size + 1, LOOKS, dtype=np.int32)
                part = pa.Table.from_batches([batch])
                clips.write_table(part.append_column("embedding", pa.ListArray.from_arrays(offsets, looks.ravel())))
                meanings = (rng.standard_normal((len(batch), dimensions), np.float32) / dimensions**0.5).astype("f2")
                columns = {"clip_id": batch["clip_id"], "frame_embeddings": [row.tobytes() for row in meanings]}
                embedded.write_table(pa.table(columns, schema=pa.schema(embedded.schema)), row_group_size=8192)


def ready(client: TestClient, path: str) -> None:
    """Request `path` until the server has what the search needs."""
    while (answer := client.get(path)).status_code == 202:
        time.sleep(0.1)
    answer.raise_for_status()


def timed(name: str, ask: Callable[[], object]) -> None:
    began, cpu = time.perf_counter(), time.process_time()
    ask()
    print(f"{name:<28} {time.perf_counter() - began:6.2f} s  {time.process_time() - cpu:6.2f} CPU s", flush=True)


def main(count: int, dimensions: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["XDG_CACHE_HOME"] = f"{scratch}/cache"
        folder = Path(scratch) / "dataset"
        report_scale.make(folder, count)
        add_embeddings(folder, dimensions)
        print(f"{count:,} clips, {dimensions} dimensions, {os.cpu_count()} cores")
        timed("load the encoder", lambda: load_encoder().texts(["a"]))
        opened: list[Explorer] = []
        timed("open the dataset", lambda: opened.append(Explorer(Store(str(folder)))))
        client = TestClient(make_app(opened[0], "t", "w"), base_url="http://127.0.0.1")
        client.get("/?token=t")
        timed("description", lambda: client.get("/api/dataset").raise_for_status())
        for name, query in QUESTIONS.items():
            if name == "text search":
                timed("first search: progress", lambda: client.get("/api/clips?search=text:x").raise_for_status())
                timed("sort meanwhile", lambda: client.get("/api/clips?sort=f9_score").raise_for_status())
                timed("first search: result", lambda: ready(client, "/api/clips?search=text:x"))
            timed(name, lambda query=query: ready(client, f"/api/clips?{query}"))
        (clip,) = client.get("/api/clips?limit=1").json()["clips"]
        timed(
            "first similar (makes a file)",
            lambda: ready(client, f"/api/clips?search=clip:{clip['id']}&sort=similarity&descending=1"),
        )
        for name in ("first clip, all scores", "next clip"):
            timed(name, lambda: client.get(f"/api/clips/{clip['id']}").raise_for_status())
        for column in ("f6_score", "rejected_by", "bucket"):
            timed(f"distribution of {column}", lambda c=column: client.get(f"/api/distribution?column={c}"))
        body = {"clips": [clip["id"]], "decision": "reject"}
        post = {"x-clipmill-token": "w"}
        timed("a decision", lambda: client.post("/api/decisions", json=body, headers=post).raise_for_status())
        timed("the page after it", lambda: client.get("/api/clips?where=decision = 'reject'").raise_for_status())
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        own, mapped = (int(status[name].split()[0]) / 1000 for name in ("RssAnon", "RssFile"))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        print(f"peak memory {peak:,.0f} MB; at the end {own:,.0f} MB of its own and {mapped:,.0f} MB of mapped files")


if __name__ == "__main__":
    words = [int(word) for word in sys.argv[1:]]
    main(*words, *(1_000_000, 384)[len(words) :])
