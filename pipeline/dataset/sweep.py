"""Deleting files that no longer belong to a dataset, after dataset.json has been replaced."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config.recipe import Recipe
from pipeline.dataset.finish import PREVIOUS, ROWS, files_of
from pipeline.pack.parts import SPOOL
from pipeline.pack.shards import ShardResult
from pipeline.state import fingerprints
from pipeline.state.error_log import FOLDER as ERRORS
from pipeline.storage.store import Store, remove_abandoned
from pipeline.tables.compaction import writer
from pipeline.tables.fragments import DONE, Fragment, frames_of, read_fragments, write_frames
from pipeline.tables.published import RETIRED


def retire(store: Store, info: Mapping[str, Any], shards: Sequence[ShardResult]) -> None:
    """Move tables and shards that dataset.json (`info`) does not name to RETIRED, where only readers of the previous
    dataset look (`open_published`). The index of each of `shards` stays, also where there is no tar. Delete the parts
    of shards."""
    named = {*files_of(info), *(shard.path.removesuffix(".tar") + ".parquet" for shard in shards)}
    for folder in ("tables/clips", "tables/sources", "tables/decisions", "shards"):
        for name in store.list(folder):
            if name not in named:
                store.move(name, f"{RETIRED}/{name}")
    store.delete_folder(SPOOL)


def sweep(store: Store, recipe: Recipe, sources: pa.Table) -> None:
    """Delete scans of removed sources or under other options, with their frames; and retired files, except those of the
    previous dataset. Call it after `retire`, and only if every source could be read: the next build may need the files
    of a server that is down now."""
    frames = _sweep_scans(store, recipe, sources)
    _sweep_errors(store, sources, frames)
    if store.local:
        remove_abandoned(store.local)
    previous = set(json.loads(store.read(PREVIOUS))) if store.exists(PREVIOUS) else set()
    keep = frames | {f"{RETIRED}/{name}" for name in previous}
    for folder in ("tables/frames", RETIRED):
        for name in store.list(folder):
            if name not in keep:
                store.delete(name)


def _sweep_scans(store: Store, recipe: Recipe, sources: pa.Table) -> set[str]:
    """Delete and shorten fragments of the scan; return the names of the frame files that stay."""
    current, wanted = fingerprints.scan_fingerprint(recipe), sources["source_id"].drop_null().combine_chunks()
    frames = set()
    for fragment in read_fragments(store, "state/scan"):
        parts = fragment.done["parts"]
        of = pa.array([part["key"].partition("@")[0] for part in parts], pa.string())
        used = pc.is_in(of, wanted).to_pylist()
        if fragment.done["fingerprint"] != current or not any(used):
            store.delete(fragment.name)
            continue
        frames |= {frames_of(part["unit"]) for part, good in zip(parts, used, strict=True) if good}
        if not all(used):
            _forget(store, fragment, wanted, [part for part, good in zip(parts, used, strict=True) if good])
    return frames


def _sweep_errors(store: Store, sources: pa.Table, frames: set[str]) -> None:
    """Delete tracebacks of sources that are gone or have no error any more, and of scans that are. `frames` are the
    files of frames that stay, one for each unit of the scan."""
    present = sources["source_uri"].combine_chunks()
    faulty = sources.filter(pc.is_valid(sources["error"]))["source_uri"].combine_chunks()
    for name in store.list(ERRORS):
        pass_name, unit = name.removeprefix(f"{ERRORS}/").removesuffix(".jsonl").split("/")
        lines = store.read(name).decode().splitlines()
        of = pa.array([json.loads(line)["source"] for line in lines], pa.string())
        is_scanned = pass_name != "scan" or frames_of(unit) in frames
        if not (is_scanned and pc.any(pc.is_in(of, faulty if pass_name == "sources" else present)).as_py()):
            store.delete(name)


def _forget(store: Store, fragment: Fragment, wanted: pa.Array, parts: Sequence[Mapping[str, Any]]) -> None:
    """Rewrite a scan fragment and the frames of its units without the sources that are not wanted; `parts` stay."""
    kept_keys = [part["key"] for part in parts]
    mixed = {part["unit"] for part in fragment.done["parts"] if part["key"] not in kept_keys}
    stay: dict[str, list[str]] = {part["unit"]: [] for part in parts if part["unit"] in mixed}
    parts = [{**part, "frames_bytes": None} if part["unit"] in mixed else part for part in parts]
    with store.open(fragment.name) as file:
        rows = pq.ParquetFile(file)
        with writer(store, fragment.name, rows.schema_arrow.remove_metadata()) as out:
            for batch in rows.iter_batches(ROWS):
                table = pa.Table.from_batches([batch])
                table = table.filter(pc.is_in(table["source_id"], wanted))
                out.write_table(table)
                for unit, clip in zip(table["unit"].to_pylist(), table["clip_id"].to_pylist(), strict=True):
                    if unit in stay:
                        stay[unit].append(clip)
            done = {**fragment.done, "parts": list(parts)}
            out.add_key_value_metadata({DONE: json.dumps(done, sort_keys=True).encode()})
    for unit, clips in stay.items():
        pictures = Fragment(frames_of(unit), {}).rows(store)
        stays = pc.is_in(pictures["clip_id"], pa.array(clips, pa.string()))
        write_frames(store, unit, pictures.filter(stays))
