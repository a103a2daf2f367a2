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

from light_recipe import GOLDEN_OPTIONS
from servers.chat_endpoint import GOOD, Endpoint, reply

from pipeline.storage.store import Store
from pipeline.tables.published import read_table

BATCH = 2


def clip_of(request: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(request["messages"], sort_keys=True).encode()).hexdigest()


def test_a_driver_that_is_killed_while_it_captions_loses_one_batch_and_captions_no_other_twice(
    golden_dataset, sample_videos, tmp_path
):
    dataset = Path(shutil.copytree(golden_dataset, tmp_path / "dataset"))
    requests, kill = Counter[str](), threading.Event()
    fragments_before = len(list((dataset / "state" / "caption").glob("*.parquet")))

    def script(request: dict[str, Any], before: int) -> tuple[Any, ...]:
        requests[clip_of(request)] += 1
        if sum(requests.values()) == BATCH + 1:  # the first batch is answered, the second is not
            while len(list((dataset / "state" / "caption").glob("*.parquet"))) == fragments_before:
                time.sleep(0.01)
            kill.set()
            return 503, {}, {"Retry-After": "60"}
        return reply(json.dumps(GOOD))

    endpoint = Endpoint(script)
    options = f"{{model: m, base_url: {endpoint.url}, concurrency: 1}}"
    words = [*GOLDEN_OPTIONS, f"caption={{captioner: server, batch: {BATCH}, options: {options}}}"]
    sources = [str(sample_videos[name]) for name in ("bikes", "bigbuckbunny")]

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "pipeline.cli", "build", *sources, "--out", str(dataset), *words]
        return subprocess.Popen([*command, "--engine", "local", "--cores", "1"], start_new_session=True)

    process = start()
    assert kill.wait(600)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert start().wait() == 0
    assert sorted(requests.values()) == [1, 1, 1, 2], "again only the clip that was asked when the driver was killed"
    endpoint.close()
    table = read_table(Store(str(dataset)), "tables/clips")
    kept = table.filter(table["keep"]).to_pylist()
    assert [row["caption"] for row in kept] == [GOOD["dense"]] * len(requests)
