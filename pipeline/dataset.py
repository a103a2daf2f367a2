"""The dataset folder as a whole: who may write to it, its finished tables, dataset.json and card."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import canaries, passes
from pipeline.recipe import Recipe, to_dict
from pipeline.storage import Store
from pipeline.tables import SOURCES, Fragment, read_fragments, table_from, to_parquet, write_fragment

FORMAT = 1
ROWS = 500_000  # clips a file of the finished table
PACKAGES = ("av", "numpy", "opencv-python-headless", "torch", "open_clip_torch", "transformers", "scenedetect-headless")
INTERNAL = ("fragment", "at", "scored", "frame_embeddings", "caption_dense")  # columns that only a build needs


class DatasetError(RuntimeError):
    """A dataset folder that cannot be used; the message says why and what to do."""


def check_folder(store: Store) -> None:
    """Raises DatasetError when the folder holds something that is not a dataset of ours."""
    if store.exists("dataset.json"):
        read_info(store)
        return
    names = store.list("")
    strange = [n for n in names if not n.startswith(("state/", "tables/", "shards/"))]
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


@contextlib.contextmanager
def lock(store: Store) -> Iterator[None]:
    """Keeps a second build out of a local folder for as long as this one lives. Raises DatasetError when another is
    there. An object store has no such lock: there, builds into one folder are the user's to keep apart."""
    if store.local is None:
        yield
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
        yield


def finish(
    store: Store,
    recipe: Recipe,
    sources: Sequence[Mapping[str, Any]],
    clips: pa.Table,
    shards: Sequence[Mapping[str, Any]],
    spent: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes the finished tables, the card and, last of all, dataset.json, whose content it returns."""
    old = json.loads(store.read("dataset.json")) if store.exists("dataset.json") else {}
    _write_table(store, "tables/sources", table_from(sources, SOURCES))
    final = clips.drop_columns([name for name in INTERNAL if name in clips.column_names])
    _write_table(store, "tables/clips", final.sort_by([("source_id", "ascending"), ("start_pts", "ascending")]))
    info = {
        "format": FORMAT,
        "recipe": to_dict(recipe),
        "versions": {"clipmill": _version("clipmill")} | {name: _version(name) for name in PACKAGES},
        "counts": counts(sources, final),
        "canaries": {one.name: one.result for one in canaries.recall(final, recipe.select.thresholds)},
        "shards": list(shards),
        "passes": {**old.get("passes", {}), **spent},
    }
    store.write("README.md", card(info).encode())
    store.write("dataset.json", json.dumps(info, indent=2, sort_keys=True).encode())
    return info


def sweep(
    store: Store, recipe: Recipe, sources: Sequence[Mapping[str, Any]], shards: Sequence[Mapping[str, Any]]
) -> None:
    """Deletes what no longer belongs to the dataset: scans under other options or of removed sources, with their
    frames, and shards that dataset.json does not list. Runs after dataset.json is written."""
    current = passes.scan_fingerprint(recipe)
    wanted = {row["source_id"] for row in sources if row["source_id"]}
    frames = set()
    for fragment in read_fragments(store, "state/scan"):
        of = {part["source_id"] for part in fragment.done["parts"]}
        if fragment.done["fingerprint"] == current and of & wanted:
            frames.add(fragment.done["frames"])
            if of - wanted:
                _forget(store, fragment, wanted)
        else:
            store.delete(fragment.name)
    for name in store.list("tables/frames"):
        if name not in frames:
            store.delete(name)
    for name in store.list("state/old"):
        store.delete(name)
    listed = {shard["path"] for shard in shards}
    for name in store.list("shards"):
        if name.removesuffix(".parquet").removesuffix(".tar") + ".tar" not in listed:
            store.delete(name)


def _forget(store: Store, fragment: Fragment, wanted: set[str]) -> None:
    """Rewrites a scan fragment and its frames without the sources that are not wanted."""
    rows = fragment.rows(store)
    rows = rows.filter(pc.is_in(rows["source_id"], pa.array(sorted(wanted))))
    frames = Fragment(str(fragment.done["frames"]), {})
    pictures = frames.rows(store)
    pictures = pictures.filter(pc.is_in(pictures["clip_id"], rows["clip_id"].combine_chunks()))
    write_fragment(store, frames.name, pictures, {})
    parts = [part for part in fragment.done["parts"] if part["source_id"] in wanted]
    write_fragment(store, fragment.name, rows, {**fragment.done, "parts": parts})


def counts(sources: Sequence[Mapping[str, Any]], clips: pa.Table) -> dict[str, Any]:
    """Numbers of sources by status, clips, kept, captions, rejections by reason, and hours; canaries count nowhere."""
    sources = [row for row in sources if not row["source_uri"].startswith(canaries.SCHEME)]
    clips = canaries.without_canaries(clips)
    status = [row["status"] for row in sources]
    seconds = pc.subtract(clips["end"], clips["start"])
    kept = clips.filter(clips["keep"])
    reasons = pc.value_counts(pc.list_flatten(clips["rejected_by"])).to_pylist()
    return {
        "sources": len(status),
        "sources_ok": status.count("ok"),
        "sources_failed": status.count("failed"),
        "sources_skipped": status.count("skipped"),
        "clips": clips.num_rows,
        "kept": kept.num_rows,
        "captions": clips.num_rows - clips["caption"].null_count,
        "rejected_by": {r["values"]: r["counts"] for r in sorted(reasons, key=lambda r: (-r["counts"], r["values"]))},
        "hours_sources": round(sum(row["duration"] or 0.0 for row in sources if row["status"] == "ok") / 3600, 4),
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


def _write_table(store: Store, folder: str, table: pa.Table) -> None:
    names = []
    for number, at in enumerate(range(0, max(table.num_rows, 1), ROWS)):
        names.append(f"{folder}/{number:05}.parquet")
        store.write(names[-1], to_parquet(table.slice(at, ROWS)))
    for name in store.list(folder):
        if name not in names:
            store.delete(name)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
