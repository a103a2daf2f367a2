"""Selection: scores and a recipe in; kept clips and reasons for rejection out. Pure, and fast for millions of rows."""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Collection, Iterable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.recipe import Bounds, Recipe, RecipeError
from pipeline.config.video_models import resolved
from pipeline.selection import balance, duplicates
from pipeline.selection.buckets import bucket_names, with_durations
from pipeline.selection.duplicates import Embeddings
from pipeline.selection.frame_contracts import packed_frames
from pipeline.tables.decisions import BY_HAND
from pipeline.tables.fragments import floats, id_prefix_u64

SELECTED = pa.schema(
    [
        ("keep", pa.bool_()),
        ("rejected_by", pa.list_(pa.string())),  # all reasons: columns whose threshold is not met, `dropped` and others
        ("duplicates_of", pa.string()),  # clip_id of the copy that is kept
        ("bucket", pa.string()),  # 16x9-720p; null if the picture is too small for any
        ("split", pa.string()),  # train or val
    ]
)
QUALITY = ("sharpness_laplacian", "aesthetics_mean")  # scores by which copies of equal resolution are ranked
RANKED = ("frames", "crop_w", "crop_h", "start", "end", "clip_id", "source_uri", *QUALITY)  # columns _rank reads
HDR = ("smpte2084", "arib-std-b67")  # color_transfer: PQ and HLG
CHUNK = 1 << 18  # rows at a time
UNAVOIDABLE = ("error", "resolution", "frame_contract", "caption")  # reasons for which no clip can be packed


def select(
    clips: pa.Table,
    recipe: Recipe,
    late: Collection[str] = frozenset(),
    captioned: bool = True,
    embeddings: Embeddings | None = None,
) -> pa.Table:
    """Return `clips` with the columns of SELECTED (texts of few values as dictionaries), with `balance_cluster` and
    `balance_weight` if the recipe sets clusters, and with `pack_frames` if it has a frame contract: the number of
    frames packed from the clip's start on. The order of rows does not change.

    `late` names the columns that the caption pass writes. Before that pass (`captioned=False`) their thresholds are not
    applied; after it they apply to the captioned clips, and a clip whose `caption` is null is rejected, unless it is
    rejected by hand. Duplicates are always decided among the clips that the other thresholds keep, so that both calls
    agree on them.

    `embeddings` are those of the clips, if they are not in a column `embedding`.

    A column `decision` overrules: a clip to `reject` has the reason BY_HAND, and its copies stay rejected as copies; a
    clip to `keep` has no reason but those of UNAVOIDABLE. No threshold applies to a caption whose `caption_by` is
    BY_HAND.

    A null or NaN does not meet a threshold unless its bounds say `missing: keep`. A null counts as a reason only if no
    measured score rejected the clip: expensive filters never ran on clips that cheap ones rejected. Raises RecipeError
    for a threshold on a missing column or one of the wrong type.
    """
    thresholds = {k: b for k, b in recipe.select.thresholds.items() if captioned or k not in late}
    check_thresholds(thresholds, clips.schema)
    n, embeddings = len(clips), embeddings or duplicates.embeddings_of(clips)
    still = floats(clips["frames"]) == 1
    buckets = bucket_names(floats(clips["crop_w"]), floats(clips["crop_h"]), still, recipe.pack.heights)
    seconds = floats(clips["end"]) - floats(clips["start"])
    options = resolved(recipe.pack)
    frames = packed_frames(seconds, still, options)
    if frames is not None:
        seconds = frames / (options.fps or 1.0)
    buckets = with_durations(buckets, seconds, still, recipe.pack.durations)
    reasons = {**_dropped(clips), "resolution": buckets.is_null().to_numpy(zero_copy_only=False)}
    if frames is not None:
        reasons["frame_contract"] = frames == 0
    if recipe.pack.hdr == "reject":
        reasons["hdr"] = pc.is_in(clips["color_transfer"], pa.array(HDR)).to_numpy()
    reasons |= _judged(clips, {k: b for k, b in thresholds.items() if k not in late}, ~_any(reasons.values(), n))

    unavoidable = _any((mask for reason, mask in reasons.items() if reason in UNAVOIDABLE), n)
    kept_by_hand = _equal(clips, "decision", "keep") & ~unavoidable
    rejected_by_hand = _equal(clips, "decision", "reject")
    candidates = ~_any(reasons.values(), n)
    keeper = _keepers(clips, recipe, candidates, embeddings)
    reasons["duplicates"] = keeper >= 0
    if captioned:
        chosen = candidates & (keeper < 0) | kept_by_hand
        answered = chosen & ~_equal(clips, "caption_by", BY_HAND)
        if "caption" in clips.column_names:
            uncaptioned = chosen & clips["caption"].is_null().to_numpy()
            reasons["caption"] = uncaptioned & ~rejected_by_hand  # no caption is requested for a clip rejected by hand
            answered &= ~uncaptioned
        late_reasons = _judged(clips, {k: b for k, b in thresholds.items() if k in late}, answered)
        reasons |= {column: failed & answered for column, failed in late_reasons.items()}

    for reason in reasons.keys() - set(UNAVOIDABLE):
        reasons[reason] = reasons[reason] & ~kept_by_hand
    if "decision" in clips.column_names:
        reasons[BY_HAND] = rejected_by_hand

    added: dict[str, pa.Array | pa.ChunkedArray] = {}
    if recipe.select.balance_clusters and embeddings:
        added, reasons["balance"] = _balanced(clips, embeddings, recipe, ~_any(reasons.values(), n), kept_by_hand)
    added |= {
        "keep": pa.array(~_any(reasons.values(), n)),
        "rejected_by": _reason_lists(reasons, n),
        "duplicates_of": clips["clip_id"].take(pa.array(np.maximum(keeper, 0), mask=keeper < 0)),
        "bucket": buckets,
        "split": splits(clips["source_id"], recipe.select.val_fraction),
    }
    if frames is not None:
        added["pack_frames"] = pa.array(frames)
    for name, column in added.items():
        if name in clips.column_names:
            clips = clips.drop_columns([name])
        clips = clips.append_column(name, column)
    return clips


def check_thresholds(thresholds: Mapping[str, Bounds], schema: pa.Schema) -> None:
    """Raise RecipeError for a threshold on a column that is not in `schema`, with the nearest name that is, and for
    bounds that do not fit the column's type."""
    for column, bounds in thresholds.items():
        key = f"select.thresholds.{column}"
        labels = bounds.any_of is not None or bounds.none_of is not None
        if column not in schema.names:
            scores = [field.name for field in schema if _has_bounds(field, labels)]
            near = difflib.get_close_matches(column, scores, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; is its filter in the recipe?"
            raise RecipeError(f"{key}: no filter writes this score{hint}")
        data_type = schema.field(column).type
        if labels != _is_label(data_type) and not pa.types.is_null(data_type):
            wanted = "any_of or none_of" if _is_label(data_type) else "min or max"
            raise RecipeError(f"{key}: the score is {data_type}, so its bounds are {wanted}")
        if pa.types.is_nested(data_type) and not _is_label(data_type):
            raise RecipeError(f"{key}: a list of numbers has no threshold")


def _has_bounds(field: pa.Field, labels: bool) -> bool:
    """Return whether a column is a score with bounds of this sort: labels, or numbers. FILTER_null is a reason."""
    is_number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type) or pa.types.is_null(field.type)
    return (_is_label(field.type) if labels else is_number) and not field.name.endswith("_null")


def splits(source_ids: pa.ChunkedArray, val_fraction: float) -> pa.Array:
    """Return train or val for each row, by a hash of its source: all clips of a source are permanently in one split."""
    encoded = source_ids.combine_chunks().dictionary_encode()
    hashes = np.array([zlib.crc32(name) for name in encoded.dictionary.cast(pa.binary()).to_pylist()], np.uint64)
    sides = (hashes < round(val_fraction * 2**32)).astype(np.int8)
    return pa.DictionaryArray.from_arrays(sides[encoded.indices.to_numpy()], ["train", "val"])


def _dropped(clips: pa.Table) -> dict[str, np.ndarray]:
    """Return masks of the clips that the scan dropped, by reason."""
    reasons: dict[str, np.ndarray] = {}
    if "dropped" in clips.column_names:
        for reason in pc.drop_null(pc.unique(clips["dropped"])).to_pylist():
            reasons[reason] = pc.fill_null(pc.equal(clips["dropped"], reason), False).to_numpy()
    return reasons


def admitted(scores: pa.ChunkedArray, bounds: Bounds) -> np.ndarray:
    """Return (n,) bool: `bounds.admit` of each score."""
    failed, missing = _judge(scores, bounds)
    return ~failed & ~missing if bounds.missing != "keep" else ~failed


def _judge(scores: pa.ChunkedArray, bounds: Bounds) -> tuple[np.ndarray, np.ndarray]:
    """Return which scores do not meet the bounds, and which are missing."""
    return (_judge_labels if _is_label(scores.type) else _judge_numbers)(scores, bounds)


def _judged(clips: pa.Table, thresholds: Mapping[str, Bounds], open_: np.ndarray) -> dict[str, np.ndarray]:
    """Return which rows fail each threshold; a null fails only in `open_` rows that fail no measured score."""
    failed, missing = {}, {}
    for column, bounds in thresholds.items():
        failed[column], missing[column] = _judge(clips[column], bounds)
    unrejected = open_ & ~_any(failed.values(), len(clips))
    return {
        column: failed[column] | (missing[column] & unrejected if bounds.missing != "keep" else False)
        for column, bounds in thresholds.items()
    }


def _judge_numbers(scores: pa.ChunkedArray, bounds: Bounds) -> tuple[np.ndarray, np.ndarray]:
    values = floats(scores)
    failed = np.zeros(len(values), bool)
    with np.errstate(invalid="ignore"):
        if bounds.min is not None:
            failed |= values < bounds.min
        if bounds.max is not None:
            failed |= values > bounds.max
    return failed, np.isnan(values)


def _judge_labels(labels: pa.ChunkedArray, bounds: Bounds) -> tuple[np.ndarray, np.ndarray]:
    """Judge labels: of a list, one label in `any_of` suffices, and one in `none_of` fails."""
    missing = labels.is_null().to_numpy()
    failed = np.zeros(len(labels), bool)
    for wanted, names in ((True, bounds.any_of), (False, bounds.none_of)):
        if names is not None:
            failed |= holds(labels, names) != wanted
    return failed & ~missing, missing


def holds(labels: pa.ChunkedArray, names: Collection[str]) -> np.ndarray:
    """Return (n,) bool: whether each label, or any of each list of labels, is among `names`."""
    wanted = pa.array(list(names), pa.string())
    if not pa.types.is_nested(labels.type):
        return pc.is_in(labels, value_set=wanted).to_numpy()
    rows = pc.list_parent_indices(labels).to_numpy()
    result = np.zeros(len(labels), bool)
    result[rows[pc.is_in(pc.list_flatten(labels), value_set=wanted).to_numpy()]] = True
    return result


def _keepers(clips: pa.Table, recipe: Recipe, candidates: np.ndarray, embeddings: Embeddings | None) -> np.ndarray:
    """Return the row of the copy that is kept in place of each clip, (n,) int64; -1 for a clip that is not a copy."""
    keeper = np.full(len(clips), -1)
    rows = np.flatnonzero(candidates)
    pairs = duplicates.equal_pairs(id_prefix_u64(clips["clip_id"])[rows])  # copies of a file: clip ids must be unique
    if recipe.select.duplicates:
        pictures = duplicates.pictures(clips, rows, embeddings)
        near = duplicates.near_pairs(pictures, recipe.select.duplicate_similarity, recipe.select.duplicate_bits)
        pairs = np.concatenate([pairs, near])
    involved = np.unique(pairs)
    rank = np.zeros(len(rows), np.int64)
    ranked = clips.select([name for name in clips.column_names if name in RANKED])
    rank[involved] = _rank(ranked.take(pa.array(rows[involved])))
    best = rows[duplicates.groups(pairs, rank)]
    copies = best != rows
    keeper[rows[copies]] = best[copies]
    return keeper


def _rank(clips: pa.Table) -> np.ndarray:
    """Return the rank of each copy, (n,) int64, 0 the best: video before stills taken from it, then by resolution,
    QUALITY, length, clip_id and address."""
    keys = [floats(clips["frames"]) == 1, -floats(clips["crop_w"]) * floats(clips["crop_h"])]
    keys += [-np.nan_to_num(floats(clips[name]), nan=-np.inf) for name in QUALITY if name in clips.column_names]
    keys += [floats(clips["start"]) - floats(clips["end"])]
    names = (clips[name].cast(pa.string()) for name in ("clip_id", "source_uri"))
    keys += [pc.rank(name, tiebreaker="dense").to_numpy() for name in names]
    rank = np.empty(len(clips), np.int64)
    rank[np.lexsort(keys[::-1])] = np.arange(len(clips))
    return rank


def _balanced(
    clips: pa.Table, embeddings: Embeddings, recipe: Recipe, keep: np.ndarray, uncapped: np.ndarray
) -> tuple[dict[str, pa.Array], np.ndarray]:
    """Return the columns of balance, and which of the clips in `keep` are over a cluster's cap; those in `uncapped`
    never are."""
    rows = np.flatnonzero(keep)
    rank = pc.rank(clips["clip_id"].take(pa.array(rows)), tiebreaker="first").to_numpy().astype(np.int64)
    rows = rows[np.argsort(rank)]  # clusters must not depend on the order of rows
    labels = balance.clusters(embeddings(rows), recipe.select.balance_clusters)
    over = np.zeros(len(rows), bool)
    if recipe.select.balance_cap:
        over = balance.over_cap(labels, np.arange(len(rows)), recipe.select.balance_cap) & ~uncapped[rows]
    cluster, weight, capped = (
        np.full(len(clips), -1, np.int32),
        np.zeros(len(clips), np.float32),
        np.zeros(len(clips), bool),
    )
    cluster[rows], capped[rows] = labels, over
    weight[rows[~over]] = balance.weights(labels[~over])
    columns = {
        "balance_cluster": pa.array(cluster, mask=cluster < 0),
        "balance_weight": pa.array(weight, mask=weight == 0),
    }
    return columns, capped


def _reason_lists(reasons: Mapping[str, np.ndarray], n: int) -> pa.ChunkedArray:
    names = pa.array(list(reasons), pa.string())
    chunks = []
    for i in range(0, max(n, 1), CHUNK):
        marks = np.stack([mask[i : i + CHUNK] for mask in reasons.values()], axis=1)
        offsets = np.concatenate([[0], marks.sum(axis=1).cumsum()]).astype(np.int32)
        listed_reasons = pa.DictionaryArray.from_arrays(np.nonzero(marks)[1].astype(np.int8), names)
        chunks.append(pa.ListArray.from_arrays(offsets, listed_reasons))
    return pa.chunked_array(chunks)


def with_reason(lists: pa.ChunkedArray, rows: np.ndarray, reason: str) -> pa.ChunkedArray:
    """Append a reason to the lists of the `rows` ((n,) bool)."""
    chunks, at = [], 0
    for chunk in lists.chunks:
        more = rows[at : at + len(chunk)]
        at += len(chunk)
        if more.any():
            longer = [[*old, reason] if new else old for old, new in zip(chunk.to_pylist(), more, strict=True)]
            chunk = pa.array(longer, lists.type)
        chunks.append(chunk)
    return pa.chunked_array(chunks, lists.type)


def _any(masks: Iterable[np.ndarray], n: int) -> np.ndarray:
    result = np.zeros(n, bool)
    for mask in masks:
        result |= mask
    return result


def _equal(clips: pa.Table, column: str, value: str) -> np.ndarray:
    """Return (n,) bool: which rows have `value` in `column`; none where there is no such column."""
    if column not in clips.column_names:
        return np.zeros(len(clips), bool)
    return np.asarray(pc.fill_null(pc.equal(clips[column].cast(pa.string()), value), False).to_numpy(), bool)


def _is_label(data_type: pa.DataType) -> bool:
    inner = data_type.value_type if pa.types.is_list(data_type) else data_type
    return pa.types.is_string(inner) or pa.types.is_large_string(inner)
