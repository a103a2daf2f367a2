"""`clipmill compare`: what differs between two datasets, clip by clip, read a column at a time.

Clips are matched by clip_id, which names a span of a source's content: the same footage in another folder, scanned
under other options or packed otherwise, is the same clip.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.finish import DatasetError, read_whole
from pipeline.storage.store import Store, atomic
from pipeline.tables.columns import Columns
from pipeline.tables.fragments import floats, id_prefix_u64
from pipeline.tables.published import table_files

FOLDER = "tables/clips"
UNCOMPARED = frozenset({"clip_id", "embedding", "phash", "source_uri", "shard"})  # keys, vectors, places
MOST = 12  # reasons printed
COLUMNS = ("clip_id", "what", "before", "after")  # of the CSV


@dataclass(frozen=True)
class Side:
    """One of the two datasets: `ids` are (n,) uint64 prefixes of its clip ids, distinct and ascending, and `rows` their
    rows in its table."""

    info: Mapping[str, Any]
    clips: Columns
    ids: np.ndarray
    rows: np.ndarray

    def column(self, name: str, at: np.ndarray | slice = slice(None)) -> pa.ChunkedArray:
        """Return the values of a column at positions `at` of `ids`; texts in an array that may exceed 2 GB."""
        column = self.clips[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_string(column.type):
            column = column.cast(pa.large_string())
        return column.take(pa.array(self.rows[at]))


def compare(before: str, after: str, out: Path | None = None) -> str:
    """Describe the differences between the datasets `before` and `after`. With `out`, write every difference to that
    CSV: clip_id, what (added, removed, or the column), before, after. Raises DatasetError where a dataset is
    incomplete."""
    a, b = _side(before), _side(after)
    _, in_a, in_b = np.intersect1d(a.ids, b.ids, assume_unique=True, return_indices=True)
    gone, new = (np.setdiff1d(np.arange(len(s.ids)), at) for s, at in ((a, in_a), (b, in_b)))
    kept_a, kept_b = (floats(side.column("keep")) == 1 for side in (a, b))
    lines = [
        f"before  {before}: {len(a.ids):,} clips, {int(kept_a.sum()):,} kept",
        f"after   {after}: {len(b.ids):,} clips, {int(kept_b.sum()):,} kept",
        f"added   {len(new):,} clips, {int(kept_b[new].sum()):,} of them kept",
        f"removed {len(gone):,} clips, {int(kept_a[gone].sum()):,} of them kept",
        f"in both {len(in_a):,} clips",
    ]
    lost, won = kept_a[in_a] & ~kept_b[in_b], ~kept_a[in_a] & kept_b[in_b]
    for text, clips, side, at in (
        ("kept before, rejected now", lost, b, in_b),
        ("rejected before, kept now", won, a, in_a),
    ):
        if clips.any():
            lines.append(f"{text}: {int(clips.sum()):,}, by {_reasons(side, at[clips])}")
    common = [name for name in a.clips.schema.names if name in b.clips.schema.names and name not in UNCOMPARED]
    changes: dict[str, np.ndarray] = {}
    for name in common:
        changed, line = _changed(name, a, b, in_a, in_b)
        if len(changed):
            changes[name] = changed
            lines.append(line)
    for text, side, other in (("only before", a, b), ("only after", b, a)):
        only = [name for name in side.clips.schema.names if name not in other.clips.schema.names]
        if only:
            lines.append(f"columns {text}: {', '.join(only)}")
    lines += sorted(_options(a.info["recipe"], b.info["recipe"]))
    if out is not None:
        with atomic(out) as temporary:
            count = _write(temporary, a, b, gone, new, {n: (in_a[i], in_b[i]) for n, i in changes.items()})
        lines.append(f"{count:,} differences in {out}")
    return "\n".join(lines)


def _side(uri: str) -> Side:
    store = Store(uri)
    info = read_whole(store)
    if not table_files(store, FOLDER, info):
        raise DatasetError(f"{uri} has no {FOLDER}: build it again")
    clips = Columns(store, FOLDER, pa.schema([]))
    ids, rows = np.unique(id_prefix_u64(clips["clip_id"]), return_index=True)
    return Side(info, clips, ids, rows)


def _is_number(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_floating(dtype) or pa.types.is_integer(dtype) or pa.types.is_boolean(dtype))


def _changed(name: str, a: Side, b: Side, in_a: np.ndarray, in_b: np.ndarray) -> tuple[np.ndarray, str]:
    """Return the positions in `in_a` and `in_b` of clips whose column `name` differs, and a line about them."""
    if _is_number(a.clips.schema.field(name).type) != _is_number(b.clips.schema.field(name).type):
        return np.zeros(0, np.int64), ""
    rows = a.column(name, in_a), b.column(name, in_b)
    if not _is_number(rows[0].type):
        if any(pa.types.is_nested(column.type) for column in rows):
            differ = np.array([x != y for x, y in zip(*(column.to_pylist() for column in rows), strict=True)])
        else:
            differ = pc.if_else(pc.and_(*map(pc.is_valid, rows)), pc.not_equal(*rows), pc.xor(*map(pc.is_valid, rows)))
        changed = np.flatnonzero(differ)
        return changed, f"{name}: {len(changed):,} changed"
    old, new = map(floats, rows)
    null = np.isnan(old) | np.isnan(new)
    changed = np.flatnonzero((old != new) & ~(np.isnan(old) & np.isnan(new)))
    difference = np.abs(new - old)[changed[~null[changed]]]
    text = f"{name}: {len(changed):,} changed"
    if pa.types.is_boolean(a.clips.schema.field(name).type):
        rose, fell = int((new > old).sum()), int((new < old).sum())
        text += f", {rose:,} from false to true" * bool(rose) + f", {fell:,} from true to false" * bool(fell)
    elif len(difference):
        text += f", by {difference.mean():.3g} on average and {difference.max():.3g} at most"
    appeared = int((np.isnan(old) & ~np.isnan(new)).sum()), int((~np.isnan(old) & np.isnan(new)).sum())
    text += f", {appeared[0]:,} from null" * bool(appeared[0]) + f", {appeared[1]:,} to null" * bool(appeared[1])
    return changed, text


def _reasons(side: Side, at: np.ndarray) -> str:
    """Count the reasons for which the clips at positions `at` are rejected, most frequent first."""
    counts = Counter(reason for reasons in side.column("rejected_by", at).to_pylist() for reason in reasons or ())
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    more = f", {len(ordered) - MOST} more reasons" * (len(ordered) > MOST)
    return ", ".join(f"{reason} {count:,}" for reason, count in ordered[:MOST]) + more


def _options(old: Mapping[str, Any], new: Mapping[str, Any], section: str = "") -> Iterator[str]:
    """Yield a line for each option of the recipe that differs; an option that only one recipe has is `not set` in the
    other."""
    for key in {**old, **new}:
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _options(before, after, f"{section}{key}.")
        elif before != after:
            first, second = (json.dumps(options[key]) if key in options else "not set" for options in (old, new))
            yield f"recipe {section}{key}: {first} -> {second}"


def _write(
    path: Path,
    a: Side,
    b: Side,
    gone: np.ndarray,
    new: np.ndarray,
    changes: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> int:
    """Write the differences, with one column in memory at a time; return how many there are."""
    count = 0
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for what, side, at in (("removed", a, gone), ("added", b, new)):
            kept = floats(side.column("keep", at)) == 1
            decisions = [("kept" if keep else "rejected") for keep in kept]
            rows = zip(side.column("clip_id", at).to_pylist(), decisions, strict=True)
            writer.writerows((key, what, *((text, "") if side is a else ("", text))) for key, text in rows)
            count += len(at)
        for name, (in_a, in_b) in changes.items():
            columns = a.column("clip_id", in_a), a.column(name, in_a), b.column(name, in_b)
            values = zip(*(column.to_pylist() for column in columns), strict=True)
            writer.writerows((key, name, _cell(old), _cell(new)) for key, old, new in values)
            count += len(in_a)
    return count


def _cell(value: Any) -> Any:
    return "" if value is None else json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value
