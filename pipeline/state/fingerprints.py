"""The passes of a build: which filters each runs, the columns that it writes, and the fingerprint of what it does.

A fingerprint covers everything that can change a pass's rows: its options, the versions of its filters, the models by
name, this code's own version, and the fingerprints of the passes before it. Limits of time and memory are not part of
it: they decide only whether a unit is finished.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from captioners import CAPTIONERS, captioner_class, captioner_version
from captioners.text.audit import AUDIT_COLUMNS
from captioners.text.audit import VERSION as AUDIT_VERSION
from filters import FILTERS, load_filter
from filters.base import Filter, Track, uses_gpu, why_null
from filters.encoders.base import ENCODERS, Declared
from pipeline.config.options import check_arguments, nearest
from pipeline.config.recipe import Bounds, CaptionOptions, Recipe, RecipeError, to_dict
from pipeline.config.video_models import resolved
from pipeline.selection.select import admitted, check_thresholds, holds
from pipeline.tables.fragments import CLIPS, fingerprint

SCAN_VERSION = 19
EMBED_VERSION = 5
CAPTION_VERSION = 3

# Options of the scan that decide whether it finishes, not what it finds
LIMITS = ("deadline_factor", "deadline_seconds", "memory_mb", "max_gb", "max_streams", "max_gigapixels")
SCAN_TRACKS = frozenset({Track.LUMA, Track.FLOW, Track.BURST, Track.FIELDS, Track.DETAIL})

IDENTIFIED = pa.schema(
    [
        ("uri", pa.string()),
        ("size", pa.int64()),
        ("stamp", pa.string()),
        ("source_id", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("limits", pa.string()),  # JSON: the limits that the source went over (state/limits.py), or null
        ("start", pa.float64()),  # seconds: presentation time of the first frame
        ("duration", pa.float64()),
        ("fps", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("codec", pa.string()),
        ("color_matrix", pa.string()),
        ("color_primaries", pa.string()),
        ("color_transfer", pa.string()),
        ("color_range", pa.string()),
    ]
)

EMBEDDED = pa.schema(
    [
        ("clip_id", pa.string()),
        ("source_id", pa.string()),
        ("scored", pa.list_(pa.string())),  # the filters that ran; not all where a cheap one rejected the clip
        ("embedding", pa.list_(pa.float32())),  # mean over the frames, unit norm
        ("frame_embeddings", pa.binary()),  # (frames, d) float16, to compare with texts
        ("phash", pa.list_(pa.uint64())),  # one a frame
    ]
)

CAPTIONED = pa.schema(
    [
        ("clip_id", pa.string()),
        ("source_id", pa.string()),
        ("caption_short", pa.string()),
        ("caption_dense", pa.string()),
        ("caption_json", pa.string()),
        ("caption_error", pa.string()),
        ("caption_by", pa.string()),  # the captioner's id: model and prompt
    ]
)


def pass_of(needs: frozenset[Track]) -> str:
    """Return the first pass that has all of `needs`: scan, embed or caption."""
    if needs <= SCAN_TRACKS:
        return "scan"
    return "caption" if Track.CAPTION in needs else "embed"


def filters_of(recipe: Recipe, name: str, encoder: object = None) -> dict[str, Filter]:
    """Return the recipe's filters that run in the pass `name`, in the recipe's order. Raises RecipeError for an unknown
    filter or option, and for weights that are missing or belong to another encoder."""
    chosen = {}
    named = Declared(f"{recipe.encoder.name}:{recipe.encoder.model}:{recipe.encoder.pretrained}")
    for key, options in recipe.filters.items():
        try:
            clip_filter = load_filter(key, options, encoder or named)
        except KeyError as error:
            raise RecipeError(f"unknown filter {key!r}{nearest(key, FILTERS)}") from error
        except RecipeError:
            raise
        except (TypeError, ValueError) as error:
            raise RecipeError(f"filters.{key}: {error}") from error
        if pass_of(clip_filter.needs) == name:
            chosen[key] = clip_filter
    return chosen


def columns_of(recipe: Recipe, name: str) -> dict[str, pa.DataType]:
    """Return the columns that the filters of a pass write: scores, and for each filter why they are null."""
    filters = filters_of(recipe, name)
    scores = {
        column: column_type for clip_filter in filters.values() for column, column_type in clip_filter.columns.items()
    }
    return {**scores, **{why_null(key): pa.string() for key in filters}}


def thresholds_of(recipe: Recipe, columns: Mapping[str, Any]) -> dict[str, Bounds]:
    """Return the recipe's thresholds on these columns."""
    return {column: bounds for column, bounds in recipe.select.thresholds.items() if column in columns}


def scan_bounds(recipe: Recipe) -> dict[str, Bounds]:
    """Return the bounds that a clip's scan scores must meet before the embed pass scores it."""
    return {} if recipe.score_all else thresholds_of(recipe, columns_of(recipe, "scan"))


def passes_scan_thresholds(row: Mapping[str, Any], bounds: Mapping[str, Bounds]) -> bool:
    """Return whether a scanned clip continues to the embed pass: not dropped, and within the `scan_bounds`."""
    return row["dropped"] is None and all(bound.admit(row[column]) for column, bound in bounds.items())


def needs_scoring(rows: pa.Table, recipe: Recipe, by_hand: np.ndarray) -> np.ndarray:
    """Return which clips the embed pass still has to score, (n,) bool. `rows` have `dropped`, the scores so far that
    have thresholds, and `scored`, the filters that ran (null: not embedded yet). A clip that an earlier build stopped
    scoring is continued if the current thresholds accept it, or if a person keeps it: those are `by_hand`, (n,) bool.
    """
    open_ = rows["dropped"].is_null().to_numpy()
    for column, bounds in scan_bounds(recipe).items():
        open_ = open_ & admitted(rows[column], bounds)
    open_ = open_ | (by_hand & pc.fill_null(pc.not_equal(rows["dropped"], "error"), True).to_numpy())
    filters, scored = filters_of(recipe, "embed"), rows["scored"]
    fresh = scored.is_null().to_numpy()
    stopped = np.zeros(rows.num_rows, bool)
    for name, clip_filter in ({} if recipe.score_all else filters).items():
        for column, bounds in thresholds_of(recipe, clip_filter.columns).items():
            stopped |= holds(scored, [name]) & ~admitted(rows[column], bounds)
    incomplete = pc.fill_null(pc.less(pc.list_value_length(scored), len(filters)), False).to_numpy()
    return open_ & (fresh | (~(stopped & ~by_hand) & incomplete))


def check(recipe: Recipe) -> None:
    """Raise RecipeError for a recipe that cannot be built: unknown filters, options, captioners, thresholds or video
    models."""
    column_types = {
        column: column_type
        for name in ("scan", "embed", "caption")
        for column, column_type in columns_of(recipe, name).items()
    }
    fields = [*CLIPS, *EMBEDDED, *(pa.field(k, v) for k, v in {**column_types, **AUDIT_COLUMNS}.items())]
    check_thresholds(recipe.select.thresholds, pa.schema(fields))
    resolved(recipe.pack)
    captioner = recipe.caption.captioner
    if captioner not in CAPTIONERS:
        raise RecipeError(f"unknown captioner {captioner!r}{nearest(captioner, CAPTIONERS)}")
    check_arguments(captioner_class(captioner), recipe.caption.options, "caption.options")
    for name in captioner_options(recipe).keys() - inspect.signature(captioner_class(captioner)).parameters.keys():
        raise RecipeError(f"caption.{name}: the captioner {captioner!r} takes no {name}")


def late_columns(recipe: Recipe) -> set[str]:
    """Return the score columns that the caption pass writes."""
    return {*AUDIT_COLUMNS, *columns_of(recipe, "caption")}


def scan_schema(recipe: Recipe) -> pa.Schema:
    """Return the schema of scanned clips; `unit` names the scan unit, and with it the file of frames."""
    columns = {"unit": pa.string(), **columns_of(recipe, "scan")}
    return pa.schema([*CLIPS, *(pa.field(k, v) for k, v in columns.items())])


def embed_schema(recipe: Recipe) -> pa.Schema:
    return pa.schema([*EMBEDDED, *(pa.field(k, v) for k, v in columns_of(recipe, "embed").items())])


def caption_schema(recipe: Recipe) -> pa.Schema:
    columns = {**AUDIT_COLUMNS, **columns_of(recipe, "caption")}
    return pa.schema([*CAPTIONED, *(pa.field(k, v) for k, v in columns.items())])


def embed_uses_gpu(recipe: Recipe) -> bool:
    """Return whether the encoder or a filter of the embed pass runs on a GPU where there is one."""
    return ENCODERS[recipe.encoder.name].gpu or any(map(uses_gpu, filters_of(recipe, "embed").values()))


def scan_fingerprint(recipe: Recipe) -> str:
    options = {name: value for name, value in to_dict(recipe.scan).items() if name not in LIMITS}
    return fingerprint("scan", SCAN_VERSION, options, _versions(recipe, "scan"))


def embed_fingerprint(recipe: Recipe) -> str:
    return fingerprint(
        "embed",
        EMBED_VERSION,
        scan_fingerprint(recipe),
        to_dict(recipe.encoder),
        _versions(recipe, "embed"),
        recipe.score_all,
    )


def caption_fingerprint(recipe: Recipe) -> str:
    caption = recipe.caption
    return fingerprint(
        "caption",
        CAPTION_VERSION,
        embed_fingerprint(recipe),
        [caption.captioner, captioner_version(caption.captioner), captioner_options(recipe)],
        caption.audit and AUDIT_VERSION,
        _versions(recipe, "caption"),
    )


def captioner_options(recipe: Recipe) -> dict[str, Any]:
    """Return the arguments of the recipe's captioner: its own options, and the prompt where the recipe changes it."""
    caption = recipe.caption
    prompt = {"instruction": caption.instruction, "language": caption.language}
    usual = CaptionOptions()
    changed = {name: value for name, value in prompt.items() if value != getattr(usual, name)}
    return {**caption.options, **changed}


def _versions(recipe: Recipe, name: str) -> list[Any]:
    return [[key, clip_filter.version, recipe.filters[key]] for key, clip_filter in filters_of(recipe, name).items()]
