"""A build that is killed while it captions: what was answered is committed by batch, and no batch is asked twice."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from chat_endpoint import GOOD, Endpoint, reply
from light_recipe import GOLDEN_OPTIONS

from pipeline.storage.store import Store
from pipeline.tables.published import read_table

BATCH = 2


def clip_of(request: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(request["messages"], sort_keys=True).encode()).hexdigest()


def captions(dataset: Path) -> list[dict[str, Any]]:
    table = read_table(Store(str(dataset)), "tables/clips")
    assert table is not None
    names = [name for name in table.column_names if name.startswith(("clip_id", "caption", "audit", "similarity"))]
    return table.select(names).to_pylist()


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_driver_that_is_killed_while_it_captions_loses_one_batch_and_captions_no_other_twice(
    golden_dataset, sample_videos, tmp_path, engine
):
    resumed, whole = (Path(shutil.copytree(golden_dataset, tmp_path / name)) for name in ("resumed", "whole"))
    asked, kill = Counter[str](), threading.Event()
    fragments_before = len(list((resumed / "state" / "caption").glob("*.parquet")))

    def script(request: dict[str, Any], before: int) -> tuple[Any, ...]:
        asked[clip_of(request)] += 1
        if sum(asked.values()) == BATCH + 1:  # the first batch is answered, the second is not
            while len(list((resumed / "state" / "caption").glob("*.parquet"))) == fragments_before:
                time.sleep(0.01)
            kill.set()
            return 503, {}, {"Retry-After": "60"}
        return reply(json.dumps(GOOD))

    endpoint = Endpoint(script)
    options = f"{{model: m, base_url: {endpoint.url}, concurrency: 1}}"
    words = [*GOLDEN_OPTIONS, f"caption={{captioner: server, batch: {BATCH}, options: {options}}}"]
    sources = [str(sample_videos[name]) for name in ("bikes", "bigbuckbunny")]

    def start(dataset: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "pipeline.cli", "build", *sources, "--out", str(dataset), *words]
        return subprocess.Popen([*command, "--engine", engine, "--cores", "2"], start_new_session=True)

    process = start(resumed)
    assert kill.wait(240)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert start(resumed).wait(240) == 0
    assert sorted(asked.values()) == [1, 1, 1, 2], "again only the clip that was asked when the driver was killed"
    assert start(whole).wait(240) == 0
    endpoint.close()
    assert captions(resumed) == captions(whole)
    assert all(row["caption_dense"] == GOOD["dense"] for row in captions(resumed) if row["caption_error"] is None)
