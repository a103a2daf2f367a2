"""The finished dataset: its tables, its card, and dataset.json, which names the files that belong to it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from captioners import PROMPTED
from captioners.text.prompt import QUESTION, Prompt
from pipeline.config.recipe import Recipe, to_dict
from pipeline.config.versions import versions
from pipeline.config.video_models import resolved
from pipeline.dataset.outcomes import outcome_counts
from pipeline.pack.shards import ShardResult
from pipeline.storage.store import Store, temporary_name
from pipeline.tables.fragments import SOURCES, plain
from pipeline.tables.published import open_published, table_files

FORMAT = 1
PAGES = ("README.md", "report.html")
FOLDERS = ("state/", "stats/", "tables/", "shards/", "decisions/")
ROWS = 500_000  # clips per file of the finished table
UNPUBLISHED = (  # columns that only a build needs
    *("unit", "scan_fragment", "embed_fragment", "captioned", "scored"),
    *("frame_embeddings", "caption_dense"),
)
PREVIOUS = "state/previous.json"  # the files of the dataset before this one, which readers may still have open


class DatasetError(RuntimeError):
    """A dataset folder that cannot be used; the message says why and what to do."""


def check_folder(store: Store) -> None:
    """Raise DatasetError where the path is a file, or a folder with anything but a dataset."""
    if store.local and store.local.is_file():
        raise DatasetError(f"{store.uri} is a file: give an empty or new folder")
    if store.exists("dataset.json"):
        read_info(store)
        return
    try:
        names = store.list("")
    except UnicodeDecodeError as error:  # Arrow's, of a name that no build writes
        raise DatasetError(f"{store.uri} holds something else (a name that is not UTF-8): give a new folder") from error
    strange = [n for n in names if not n.startswith((*FOLDERS, *PAGES))]
    if strange or (names and not any(n.startswith(("state/", "decisions/")) for n in names)):
        raise DatasetError(f"{store.uri} holds something else ({(strange or names)[0]}): give an empty or new folder")


def read_info(store: Store) -> dict[str, Any]:
    """Read dataset.json. Raises DatasetError where there is none, or one of another format."""
    try:
        info = json.loads(store.read("dataset.json"))
        version = info["format"]
    except FileNotFoundError as error:
        raise DatasetError(f"{store.uri} is not a dataset: it has no dataset.json") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{store.path('dataset.json')} is damaged: delete it and build again") from error
    if version != FORMAT:
        raise DatasetError(f"{store.uri} has format {version}, this clipmill writes {FORMAT}: build into a new folder")
    return dict(info)


def damage(store: Store, info: Mapping[str, Any]) -> list[str]:
    """Describe what is wrong with the tables of a dataset whose dataset.json is `info`."""
    problems = []
    for table, wanted in info.get("rows", {}).items():
        rows = 0
        for name in table_files(store, f"tables/{table}", info):
            try:
                with open_published(store, name) as file:
                    rows += pq.read_metadata(file).num_rows
            except FileNotFoundError:
                problems.append(f"{name} is missing")
            except (OSError, pa.ArrowException) as error:
                problems.append(f"{name} cannot be read ({str(error).splitlines()[0][:100]})")
        if rows != wanted:
            problems.append(f"tables/{table} has {rows:,} rows, where dataset.json says {wanted:,}")
    return problems


def read_whole(store: Store) -> dict[str, Any]:
    """Read dataset.json of a dataset, and check that its tables are complete. Raises DatasetError."""
    info = read_info(store)
    if problems := damage(store, info):
        raise DatasetError(f"{store.uri}: {problems[0]}: run its build again, which makes anew only what is missing")
    return info


def publish(
    store: Store,
    recipe: Recipe,
    sources: pa.Table,
    clips: pa.Table,
    rows: Iterable[pa.Table],
    shards: Sequence[ShardResult],
    passes: Mapping[str, Any],
    decided: pa.Table | None = None,
) -> dict[str, Any]:
    """Write the finished tables and the card, then switch to them by replacing dataset.json; return its content.

    `rows` are all of tables/clips, piece by piece; `clips` the columns that are counted; `passes` what each pass of
    this build has taken; `decided` are rows of OUTCOMES, if there are decisions by hand. Files of the dataset as it was
    until now are neither replaced nor deleted: `sweep` does that.
    """
    old = json.loads(store.read("dataset.json")) if store.exists("dataset.json") else {}
    info: dict[str, Any] = {
        "format": FORMAT,
        "recipe": to_dict(recipe),
        "versions": versions(),
        "prompts": _prompts(recipe),
        "counts": counts(sources, clips, resolved(recipe.pack).fps),
        "tables": {
            "sources": _write_table(store, "tables/sources", [sources.select(SOURCES.names)]),
            "clips": _write_table(store, "tables/clips", map(_public, rows)),
        },
        "rows": {"sources": sources.num_rows, "clips": clips.num_rows},
        "shards": [
            {"path": shard.path, "sha256": shard.sha256, "bytes": shard.bytes, "clips": shard.clips}
            for shard in shards
            if shard.clips  # else none of its clips could be encoded, and there is no tar
        ],
        "passes": {**old.get("passes", {}), **passes},
    }
    if decided is not None and decided.num_rows:
        info["counts"] |= outcome_counts(decided)
        info["tables"]["decisions"] = _write_table(store, "tables/decisions", [decided])
        info["rows"]["decisions"] = decided.num_rows
    if old and (replaced := files_of(old)) != files_of(info):
        store.write(PREVIOUS, json.dumps(replaced).encode())
    store.write("README.md", card(info).encode())
    store.write("dataset.json", json.dumps(info, indent=2).encode())  # the order of filters counts
    return info


def files_of(info: Mapping[str, Any]) -> list[str]:
    """Return the tables, tars and indexes that a dataset.json names, sorted."""
    tables = [name for names in info.get("tables", {}).values() for name in names]
    tars = [shard["path"] for shard in info["shards"]]
    return sorted([*tables, *tars, *(tar.removesuffix(".tar") + ".parquet" for tar in tars)])


def _prompts(recipe: Recipe) -> dict[str, str]:
    """Return the exact prompts of the captioner's model: the system prompt, and the text after a clip's frames. Empty
    where the captioner uses no model."""
    if recipe.caption.captioner not in PROMPTED:
        return {}
    prompt = Prompt(recipe.caption.instruction, recipe.caption.language)
    return {"instructions": prompt.instructions, "question": QUESTION}


def _public(table: pa.Table) -> pa.Table:
    return table.drop_columns([name for name in UNPUBLISHED if name in table.column_names])


def _trimmed(kept: pa.Table, fps: float | None) -> dict[str, float]:
    """Return the hours that the frame contract cuts off the ends of kept clips; empty where the recipe has none."""
    if fps is None or "pack_frames" not in kept.column_names:
        return {}
    moving = kept.filter(pc.greater(kept["frames"], 1))
    seconds = pc.sum(pc.subtract(moving["end"], moving["start"])).as_py() or 0.0
    return {"hours_trimmed": round((seconds - (pc.sum(moving["pack_frames"]).as_py() or 0) / fps) / 3600, 4)}


def counts(sources: pa.Table, clips: pa.Table, fps: float | None = None) -> dict[str, Any]:
    """Return the numbers of sources by status, clips, kept clips and those with a caption, rejections by reason, and
    hours. `fps` is the constant rate at which clips are packed, if any."""
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
        "captions": kept.num_rows - kept["caption"].null_count,
        "rejected_by": {r["values"]: r["counts"] for r in sorted(reasons, key=lambda r: (-r["counts"], r["values"]))},
        "hours_sources": round((pc.sum(usable["duration"]).as_py() or 0.0) / 3600, 4),
        "hours_clips": round((pc.sum(seconds).as_py() or 0.0) / 3600, 4),
        "hours_kept": round((pc.sum(pc.subtract(kept["end"], kept["start"])).as_py() or 0.0) / 3600, 4),
        **_trimmed(kept, fps),
    }


def card(info: Mapping[str, Any]) -> str:
    """Return the dataset card: Hugging Face front matter, then an overview for users."""
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
        *([f"| kept by hand | {count['kept_by_hand']:,} |"] if count.get("kept_by_hand") else []),
        "",
        "A sample is KEY.mp4 (or KEY.jpg), KEY.txt (its caption) and KEY.json (source, span, scores, versions).",
        "`tables/clips` has every clip that was found, kept or not, with all scores and the reasons;",
        "`report.html` shows them. The licence of the footage is the sources' own.",
        "",
    ]
    return "\n".join(lines)


def _write_table(store: Store, folder: str, tables: Iterable[pa.Table]) -> list[str]:
    """Write `tables`, of one schema, to files of about ROWS rows; return their names, which contain a hash of the
    content."""
    names: list[str] = []
    pieces = map(plain, tables)
    piece = next(pieces, None)
    while piece is not None:
        with store.folder(folder) as local:
            temporary = local / temporary_name("table")
            try:
                with pq.ParquetWriter(temporary, piece.schema, compression="zstd") as out:
                    written = 0
                    while piece is not None and written < ROWS:
                        out.write_table(piece)
                        written += piece.num_rows
                        piece = next(pieces, None)
                with open(temporary, "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()[:8]
                    os.fsync(file.fileno())
                names.append(f"{folder}/{len(names):05}-{digest}.parquet")
                os.replace(temporary, local / names[-1].rpartition("/")[2])
            finally:
                temporary.unlink(missing_ok=True)
    return names
