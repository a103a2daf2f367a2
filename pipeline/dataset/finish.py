"""The dataset folder as a whole: who may write to it, its finished tables, dataset.json and card."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import captioners
import filters
import pipeline
from pipeline.config.recipe import Recipe, to_dict
from pipeline.config.versions import installed
from pipeline.pack.worker import plain
from pipeline.sources import canaries
from pipeline.sources.discover import DiscoveredFile
from pipeline.state import fingerprints
from pipeline.storage.lease import FOLDER, LeaseError, lease
from pipeline.storage.store import Store, remove_abandoned
from pipeline.tables.compaction import writer
from pipeline.tables.fragments import DONE, SOURCES, Fragment, frames_of, read_fragments, write_frames

FORMAT = 1
PAGES = ("README.md", "report.html")
ROWS = 500_000  # clips a file of the finished table
PACKAGES = ("av", "numpy", "opencv-python-headless", "torch", "open_clip_torch", "transformers", "scenedetect-headless")
INTERNAL = (  # columns that only a build needs
    *("unit", "scan_at", "embed_at", "captioned", "scored"),
    *("frame_embeddings", "caption_dense"),
)
UNCHANGED = "state/unchanged"  # names all that went into the last build and came out of it


class DatasetError(RuntimeError):
    """A dataset folder that cannot be used; the message says why and what to do."""


def check_folder(store: Store) -> None:
    """Raises DatasetError when the folder holds something that is not a dataset of ours."""
    if store.exists("dataset.json"):
        read_info(store)
        return
    names = store.list("")
    strange = [n for n in names if not n.startswith(("state/", "stats/", "tables/", "shards/", *PAGES))]
    if strange or (names and not any(n.startswith("state/") for n in names)):
        raise DatasetError(f"{store.uri} holds something else ({(strange or names)[0]}): give an empty or new folder")


def read_info(store: Store) -> dict[str, Any]:
    """What dataset.json says. Raises DatasetError where there is none, or one of another format."""
    try:
        info = json.loads(store.read("dataset.json"))
        found = info["format"]
    except FileNotFoundError as error:
        raise DatasetError(f"{store.uri} is not a dataset: it has no dataset.json") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{store.path('dataset.json')} is damaged: delete it and build again") from error
    if found != FORMAT:
        raise DatasetError(f"{store.uri} has format {found}, this clipmill writes {FORMAT}: build into a new folder")
    return dict(info)


def damage(store: Store, info: Mapping[str, Any]) -> list[str]:
    """What is wrong with the finished tables of a dataset whose dataset.json says `info`."""
    problems = []
    for table, wanted in info.get("rows", {}).items():
        rows = 0
        for name in store.list(f"tables/{table}", ".parquet"):
            try:
                with store.open(name) as file:
                    rows += pq.read_metadata(file).num_rows
            except (OSError, pa.ArrowException) as error:
                problems.append(f"{name} cannot be read ({str(error).splitlines()[0][:100]})")
        if rows != wanted:
            problems.append(f"tables/{table} has {rows:,} rows, where dataset.json says {wanted:,}")
    return problems


def read_whole(store: Store) -> dict[str, Any]:
    """What dataset.json says of a dataset whose tables are all there. Raises DatasetError."""
    info = read_info(store)
    if problems := damage(store, info):
        raise DatasetError(f"{store.uri}: {problems[0]}: run its build again, which makes anew only what is missing")
    return info


@contextlib.contextmanager
def lock(store: Store) -> Iterator[Callable[[], None]]:
    """Keeps a second build out of a dataset for as long as this one lives: by a lock of the file system, or a lease on
    an object store. Yields a function that raises DatasetError when it was lost; so does this where another build is
    there."""
    if store.local is None:
        try:
            with lease(store) as check:
                yield check
        except LeaseError as error:
            raise DatasetError(str(error)) from error
        return
    store.local.mkdir(parents=True, exist_ok=True)
    with open(store.local / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise DatasetError(f"another build is writing to {store.uri} ({file.read().strip()})") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield lambda: None


def finish(
    store: Store,
    recipe: Recipe,
    sources: pa.Table,
    clips: pa.Table,
    rows: Iterable[pa.Table],
    shards: Sequence[Mapping[str, Any]],
    spent: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes the finished tables, the card and, last of all, dataset.json, whose content it returns. `rows` are all of
    tables/clips, piece by piece; `clips` what of them is counted."""
    old = json.loads(store.read("dataset.json")) if store.exists("dataset.json") else {}
    _write_table(store, "tables/sources", [sources.select(SOURCES.names)])
    _write_table(store, "tables/clips", map(_public, rows))
    info = {
        "format": FORMAT,
        "recipe": to_dict(recipe),
        "versions": _versions(),
        "counts": counts(sources, clips),
        "rows": {"sources": sources.num_rows, "clips": clips.num_rows},
        "canaries": {one.name: one.result for one in canaries.recall(clips, recipe.select.thresholds)},
        "shards": list(shards),
        "passes": {**old.get("passes", {}), **spent},
    }
    store.write("README.md", card(info).encode())
    store.write("dataset.json", json.dumps(info, indent=2, sort_keys=True).encode())
    return info


def _public(table: pa.Table) -> pa.Table:
    return table.drop_columns([name for name in INTERNAL if name in table.column_names])


def is_unchanged(found: Sequence[DiscoveredFile], store: Store, recipe: Recipe) -> bool:
    """Whether the last build was finished and would be the same: sources, recipe, code and packages, and every file of
    the dataset."""
    return store.exists(UNCHANGED) and store.read(UNCHANGED) == _all_of_it(found, store, recipe)


def note_unchanged(found: Sequence[DiscoveredFile], store: Store, recipe: Recipe) -> None:
    store.write(UNCHANGED, _all_of_it(found, store, recipe))


def _all_of_it(found: Sequence[DiscoveredFile], store: Store, recipe: Recipe) -> bytes:
    digest = hashlib.sha256(repr([to_dict(recipe), _versions()]).encode())
    for package in (pipeline, filters, captioners):
        for path in sorted(Path(package.__path__[0]).rglob("*")):
            if path.suffix != ".pyc" and path.is_file():
                digest.update(path.read_bytes())
    for file in found:
        digest.update(repr(file).encode())
    for name, size, stamp in store.stat():
        if name != UNCHANGED and not name.startswith(FOLDER):
            digest.update(f"{name} {size} {stamp}\n".encode())
    return digest.hexdigest().encode()


def sweep(store: Store, recipe: Recipe, sources: pa.Table, shards: Sequence[Mapping[str, Any]]) -> None:
    """Deletes what no longer belongs to the dataset: scans under other options or of removed sources, with their
    frames, and shards that dataset.json does not list. Runs after dataset.json is written."""
    current, wanted = fingerprints.scan_fingerprint(recipe), sources["source_id"].drop_null().combine_chunks()
    frames = set()
    for fragment in read_fragments(store, "state/scan"):
        parts = fragment.done["parts"]
        of = pa.array([part["key"].partition("@")[0] for part in parts], pa.string())
        there = pc.is_in(of, wanted).to_pylist()
        if fragment.done["fingerprint"] != current or not any(there):
            store.delete(fragment.name)
            continue
        frames |= {frames_of(part["unit"]) for part, good in zip(parts, there, strict=True) if good}
        if not all(there):
            _forget(store, fragment, wanted, [part for part, good in zip(parts, there, strict=True) if good])
    if store.local:
        remove_abandoned(store.local)
    listed = {shard["path"] for shard in shards}
    for folder in ("tables/frames", "state/old", "state/pack", "shards"):
        for name in store.list(folder):
            if name not in frames and name.removesuffix(".parquet").removesuffix(".tar") + ".tar" not in listed:
                store.delete(name)


def _forget(store: Store, fragment: Fragment, wanted: pa.Array, parts: Sequence[Mapping[str, Any]]) -> None:
    """Rewrites a scan fragment, and the frames of its units, without the sources that are not wanted; `parts` stay."""
    left = [part["key"] for part in parts]
    mixed = {part["unit"] for part in fragment.done["parts"] if part["key"] not in left}
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
        there = pc.is_in(pictures["clip_id"], pa.array(clips, pa.string()))
        write_frames(store, unit, pictures.filter(there))


def counts(sources: pa.Table, clips: pa.Table) -> dict[str, Any]:
    """Numbers of sources by status, clips, kept, captions, rejections by reason, and hours; canaries count nowhere."""
    sources, clips = canaries.without_canaries(sources), canaries.without_canaries(clips)
    status = {row["values"]: row["counts"] for row in pc.value_counts(sources["status"]).to_pylist()}
    usable = sources.filter(pc.equal(sources["status"], "ok"))
    seconds = pc.subtract(clips["end"], clips["start"])
    kept = clips.filter(clips["keep"])
    reasons = pc.value_counts(pc.list_flatten(clips["rejected_by"])).to_pylist()
    return {
        "sources": sources.num_rows,
        **{f"sources_{name}": status.get(name, 0) for name in ("ok", "failed", "skipped")},
        "clips": clips.num_rows,
        "kept": kept.num_rows,
        "captions": clips.num_rows - clips["caption"].null_count,
        "rejected_by": {r["values"]: r["counts"] for r in sorted(reasons, key=lambda r: (-r["counts"], r["values"]))},
        "hours_sources": round((pc.sum(usable["duration"]).as_py() or 0.0) / 3600, 4),
        "hours_clips": round((pc.sum(seconds).as_py() or 0.0) / 3600, 4),
        "hours_kept": round((pc.sum(pc.subtract(kept["end"], kept["start"])).as_py() or 0.0) / 3600, 4),
    }


def card(info: Mapping[str, Any]) -> str:
    """The dataset card: Hugging Face front matter, then what a person wants to know first."""
    count = info["counts"]
    buckets = sorted({shard["path"].split("/")[1] for shard in info["shards"]})
    lines = [
        "---",
        "task_categories: [text-to-video]",
        "tags: [webdataset, video, clipmill]",
        "configs:",
        "- config_name: default",
        "  data_files:",
        *(
            line
            for split, name in (("train", "train"), ("val", "validation"))
            if any(f"/{split}-" in shard["path"] for shard in info["shards"])
            for line in (f"  - split: {name}", f'    path: "shards/*/{split}-*.tar"')
        ),
        "---",
        "",
        f"# Text-video clips, {count['kept']:,} of {count['clips']:,}",
        "",
        f"{count['hours_kept']:.2f} hours kept of {count['hours_sources']:.2f}, from {count['sources_ok']:,} sources, "
        f"made with the recipe `{info['recipe']['name']}`.",
        "",
        "| | |",
        "|---|---|",
        f"| buckets | {', '.join(buckets) or 'none'} |",
        f"| shards | {len(info['shards']):,}, {sum(s['bytes'] for s in info['shards']) / 1e9:.2f} GB |",
        f"| captions | {count['captions']:,} by `{info['recipe']['caption']['captioner']}` |",
        *(f"| rejected by {reason} | {number:,} |" for reason, number in count["rejected_by"].items()),
        "",
        "A sample is KEY.mp4 (or KEY.jpg), KEY.txt (its caption) and KEY.json (source, span, scores, versions).",
        "`tables/clips` has every clip that was found, kept or not, with all scores and the reasons;",
        "`report.html` shows them. The licence of the footage is the sources' own.",
        "",
    ]
    return "\n".join(lines)


def _write_table(store: Store, folder: str, tables: Iterable[pa.Table]) -> None:
    """`tables`, of one schema, to files of about ROWS rows."""
    names: list[str] = []
    with contextlib.ExitStack() as stack:
        written = ROWS
        for table in map(plain, tables):
            if written >= ROWS:
                stack.close()
                names.append(f"{folder}/{len(names):05}.parquet")
                out = stack.enter_context(writer(store, names[-1], table.schema))
                written = 0
            out.write_table(table)
            written += table.num_rows
    for name in store.list(folder):
        if name not in names:
            store.delete(name)


def _versions() -> dict[str, str]:
    return {name: installed(name) or "unknown" for name in ("clipmill", *PACKAGES)}
