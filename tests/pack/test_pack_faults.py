"""A clip that hangs or kills the encoder is one failure; a machine that cannot go on leaves a shard for later."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import signal
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import packing_rows
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from footage import videos

from pipeline.config.recipe import PackOptions, Recipe, ScanOptions, SelectOptions, SourceOptions
from pipeline.media import encode
from pipeline.pack import clip_encoder
from pipeline.pack.clip_encoder import ClipEncoder
from pipeline.pack.parts import rows_file, spool_of
from pipeline.pack.shards import index_path, listed, plan_shards, write_shard
from pipeline.pack.worker import Pack, PackUnit, Transcode, TranscodeUnit
from pipeline.selection.select import select
from pipeline.storage.store import Store
from pipeline.tables.fragments import write_fragment

RECIPE = Recipe(
    select=SelectOptions(duplicates=False, val_fraction=0.0),
    pack=PackOptions(heights=(96,)),
    scan=ScanOptions(deadline_seconds=25.0, deadline_factor=0.1, memory_mb=900),
)
HANG, CRASH, HUNGER, FULL = (f"clip {number} of film" for number in range(4))


def encode_or_fail(row: Mapping[str, Any], options: PackOptions, sources: SourceOptions) -> encode.Encoded:
    """`encode_clip`, but for clips whose captions name a fault."""
    if row["caption"] == HANG:
        time.sleep(600)
    if row["caption"] == CRASH:
        signal.raise_signal(signal.SIGSEGV)
    if row["caption"] == HUNGER:
        bytearray(8 << 30)
    return clip_encoder_encode(row, options, sources)


def encode_on_a_full_disk(row: Mapping[str, Any], options: PackOptions, sources: SourceOptions) -> encode.Encoded:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


clip_encoder_encode = clip_encoder.encode_clip


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    folder = tmp_path_factory.mktemp("sources")
    path = videos.write_video(folder / "film.mp4", videos.pan(videos.texture(1, 108, 192), 60, 2), g="20")
    rows = packing_rows.rows_of(path, [(0, 12), (12, 24), (24, 36), (36, 48), (48, 59)])
    return select(packing_rows.clips_table(rows), RECIPE)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_span_that_hangs_crashes_or_eats_memory_is_one_failure_and_the_others_are_packed(
    clips: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip_encoder, "encode_clip", encode_or_fail)
    monkeypatch.setattr(clip_encoder, "ENCODE_FACTOR", 0.0)  # else a clip has half a minute more
    (plan,) = plan_shards(clips, RECIPE)
    with ClipEncoder(RECIPE.scan) as encoder:
        result = write_shard(plan, tmp_path, None, encoder)
        children = {error.clip: error.failure for error in encoder.errors}
    names = dict(zip(clips["caption"].to_pylist(), clips["clip_id"].to_pylist(), strict=True))
    reasons = dict(result.failures)
    assert result.clips == 2
    assert set(reasons) == set(children) == {names[HANG], names[CRASH], names[HUNGER]}
    assert "took longer than" in reasons[names[HANG]]
    assert reasons[names[CRASH]] == "the process crashed (SIGSEGV)"
    assert reasons[names[HUNGER]] == "needed more than the 900 MB of memory that it may have"
    assert not any(failure.place for failure in children.values())


def test_a_clip_packed_after_a_crash_has_the_same_bytes(
    clips: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = clips.filter(pc.is_in(clips["caption"], pa.array([CRASH, FULL, "clip 4 of film"])))
    (plan,) = plan_shards(rows.slice(1), RECIPE)
    write_shard(plan, tmp_path / "calm")
    monkeypatch.setattr(clip_encoder, "encode_clip", encode_or_fail)
    (disturbed,) = plan_shards(rows, RECIPE)
    write_shard(disturbed, tmp_path / "disturbed")
    calm, after = (
        {name: hashlib.sha256(data).hexdigest() for name, data in members(tmp_path / folder).items()}
        for folder in ("calm", "disturbed")
    )
    assert len(calm) == 2
    assert after == calm


def members(folder: Path) -> dict[str, bytes]:
    """The media of every shard below `folder` by name."""
    contents = {}
    for path in folder.rglob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if member.name.endswith(".mp4") and file:
                    contents[member.name] = file.read()
    return contents


def test_a_full_temporary_folder_costs_no_clip(
    clips: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (plan,) = plan_shards(clips, RECIPE)
    monkeypatch.setenv("TMPDIR", "/proc/nowhere")  # nothing can be written there
    monkeypatch.setattr("tempfile.tempdir", "/proc/nowhere")
    assert write_shard(plan, tmp_path).clips == 5


def test_a_full_disk_stops_the_pass_and_leaves_the_shard_to_the_next_build(
    clips: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    (plan,) = plan_shards(clips, RECIPE)
    spool = spool_of(plan.name)
    write_fragment(store, rows_file(spool), plan.rows(), {})
    transcode, pack = TranscodeUnit(spool, 0, 5), PackUnit(plan.path, plan.name, spool, 5)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_a_small_disk(worker: Any, unit: Any) -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # of this process: a shard does not fit
        try:
            return worker(unit)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with pytest.raises(OSError, match="File too large"):
        on_a_small_disk(Transcode(store, RECIPE), transcode)
    monkeypatch.setattr(clip_encoder, "encode_clip", encode_on_a_full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        Transcode(store, RECIPE)(transcode)
    assert {path.name for path in (tmp_path / spool).iterdir()} == {"rows.parquet"}

    monkeypatch.undo()
    assert Transcode(store, RECIPE)(transcode).counts["clips"] == 5
    with pytest.raises(OSError, match="File too large"):
        on_a_small_disk(Pack(store, RECIPE), pack)
    assert listed(store) == {}
    assert [path.name for path in tmp_path.rglob("*.tar")] == ["00000.tar"]
    assert not index_path(tmp_path / plan.path).exists()

    Pack(store, RECIPE)(pack)
    assert [result.clips for result in listed(store).values()] == [5]
    assert not (tmp_path / spool).exists()
    assert Pack(store, RECIPE)(pack).problem == ""  # as after the loss of the worker that had just written it


def test_the_child_that_encodes_is_kept_from_clip_to_clip_and_leaves_with_its_encoder(clips: pa.Table) -> None:
    own = psutil.Process()
    before = {child.pid for child in own.children()}
    with ClipEncoder(RECIPE.scan) as encoder:
        pids = set()
        for _, media in encoder.encode_all(clips.to_pylist(), RECIPE.pack):
            assert isinstance(media, encode.Encoded)
            pids |= {child.pid for child in own.children()} - before
    assert len(pids) == 1
    assert not {child.pid for child in own.children()} - before
