"""The overlay of decisions: written at once, merged by time, safe with several writers, on disk and on S3."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.storage.store import Store
from pipeline.tables import decisions
from pipeline.tables.decisions import DecisionLog, decisions_digest, read_decisions


def row(clip: str, **change: Any) -> dict[str, Any]:
    return {"clip_id": clip, "source_uri": "a.mp4", "start": 0.0, "end": 2.0, **change}


def test_several_writers_lose_nothing_and_the_latest_counts(store):
    first, second = DecisionLog(store), DecisionLog(store)
    first.add([row("a", decision="keep"), row("b", decision="reject")])
    second.add([row("b", decision="keep"), row("c", caption="Of the second.")])
    first.add([row("d", decision="reject")])
    table = read_decisions(store)
    assert table["clip_id"].to_pylist() == ["a", "b", "c", "d"]
    assert table["decision"].to_pylist() == ["keep", "keep", None, "reject"]
    second.add([row("a")])  # undone
    assert read_decisions(store)["clip_id"].to_pylist() == ["b", "c", "d"]


def test_a_decision_counts_after_one_of_a_writer_whose_clock_is_ahead(store, monkeypatch):
    ahead, behind = DecisionLog(store), DecisionLog(store)
    with monkeypatch.context() as patch:
        patch.setattr(decisions.time, "time_ns", lambda: 4_000_000_000_000_000_000)
        ahead.add([row("a", decision="keep")])
    behind.add([row("a", decision="reject")])
    assert read_decisions(store)["decision"].to_pylist() == ["reject"]


def test_what_could_not_be_written_is_not_decided(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    log = DecisionLog(store)
    log.add([row("a", decision="keep")])

    def full(name: str, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "write", full)
        with pytest.raises(OSError, match="No space left"):
            log.add([row("b", decision="keep")])
    assert set(log.current()[0]) == {"a"}
    log.add([row("c", decision="reject")])
    assert read_decisions(store)["clip_id"].to_pylist() == ["a", "c"]


def test_the_digest_is_of_what_was_decided_not_of_when(tmp_path: Path):
    digests = []
    for name, order in (("x", "ab"), ("y", "ba")):
        store = Store(str(tmp_path / name))
        for clip in order:
            DecisionLog(store).add([row(clip, decision="keep")])
        digests.append(decisions_digest(read_decisions(store)))
    assert digests[0] == digests[1]
    DecisionLog(store).add([row("b", decision="reject")])
    assert decisions_digest(read_decisions(store)) != digests[0]


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from("abc"), st.sampled_from(["keep", "reject", None])), max_size=8
    )
)
def test_any_order_of_writers_ends_with_the_last_decision_of_each_clip(changes):
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        logs, last = [DecisionLog(store) for _ in range(3)], dict[str, str | None]()
        for writer, clip, decision in changes:
            logs[writer].add([row(clip, decision=decision)])
            last[clip] = decision
        table = read_decisions(store)
        decided = dict(zip(table["clip_id"].to_pylist(), table["decision"].to_pylist(), strict=True))
        assert decided == {clip: decision for clip, decision in last.items() if decision}
