"""What-if: the clips that other selection options would add or drop, computed by a build's selection from the
tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.recipe import Recipe, RecipeError, SelectOptions, from_dict, to_dict
from pipeline.engine.progress import clock, counted
from pipeline.selection.select import QUALITY, check_thresholds, select
from pipeline.state import fingerprints
from pipeline.storage.store import Store
from pipeline.tables import fragments
from pipeline.tables.columns import Columns

EXAMPLES = 5
# Columns that selection reads beside those of thresholds.
DECIDING = {*fragments.CLIPS.names, *QUALITY, "caption", "caption_by", "decision", "embedding", "phash"}
NOTCH = 0.05  # of the clips that have the score


@dataclass(frozen=True)
class ClipGroup:
    """A set of clips: their number, total hours, and the first few ids."""

    clips: int
    hours: float
    examples: tuple[str, ...]


@dataclass(frozen=True)
class WhatIf:
    """A selection with other options, compared with the recipe's own.

    `added` includes `uncaptioned` clips, which a build would caption first and might reject then. `unscored` clips pass
    the changed thresholds but lack other scores, because expensive filters skip clips that cheap ones reject: only a
    build can decide about them.
    """

    overrides: tuple[str, ...]
    kept: int  # with the recipe as it is
    added: ClipGroup
    dropped: ClipGroup
    uncaptioned: int
    unscored: ClipGroup

    def __str__(self) -> str:
        lines = [f"{' '.join(self.overrides)}: {counted(self.kept, 'clips')} now"]
        after = f", of which {self.uncaptioned:,} have no caption yet" if self.uncaptioned else ""
        for verb, group, more in (
            ("adds", self.added, after),
            ("drops", self.dropped, ""),
            ("may add", self.unscored, ": their other filters have not run yet"),
        ):
            if group.clips or group is not self.unscored:
                shown = f" ({', '.join(group.examples)})" if group.examples else ""
                lines.append(
                    f"  {verb} {counted(group.clips, 'clips')} of {clock(3600 * group.hours)} in all{more}{shown}"
                )
        return "\n".join(lines)


@dataclass(frozen=True)
class Notch:
    """A threshold moved so that 5% more, or fewer, of the clips are on its rejected side."""

    column: str
    side: str  # min or max
    looser: WhatIf | None  # None where there is nothing in that direction
    stricter: WhatIf | None


def what_if(dataset: Path | str, recipe: Recipe, overrides: Sequence[str]) -> WhatIf:
    """Return the clips that `key=value` overrides of `recipe` would add to or drop from the dataset; nothing is
    decoded, scored or written. Keys may omit `select.thresholds.` or `select.`. Raises RecipeError for an unknown key
    or one that selection does not use, OSError where there is no dataset."""
    store = Store(str(dataset))
    if not store.list("tables/clips", ".parquet"):
        raise FileNotFoundError(f"{dataset} has no clips table: build it first")
    changed, _ = _changed(recipe, overrides)
    clips = Columns(store, "tables/clips", fragments.CLIPS)
    thresholds = {**recipe.select.thresholds, **changed.select.thresholds}
    check_thresholds(thresholds, clips.schema)
    return compare(clips.table(*(n for n in clips.schema.names if n in thresholds or n in DECIDING)), recipe, overrides)


def compare(clips: pa.Table, recipe: Recipe, overrides: Sequence[str]) -> WhatIf:
    """Compare the recipe with and without overrides on a clips table as a build writes it."""
    changed, keys = _changed(recipe, overrides)
    return _compare(clips, _selected(clips, recipe), changed, keys)


def notches(clips: pa.Table, recipe: Recipe) -> list[Notch]:
    """Return each numeric threshold of the recipe moved by one notch both ways, with the others unchanged."""
    before = _selected(clips, recipe)
    moves = []
    for column, bounds in recipe.select.thresholds.items():
        for side in ("min", "max"):
            value = getattr(bounds, side)
            if value is None or column not in clips.column_names:
                continue
            moved: dict[str, WhatIf | None] = {}
            for name, to in zip(("looser", "stricter"), _neighbours(clips[column], value, side), strict=True):
                moved[name] = None
                if to is not None:
                    key = f"select.thresholds.{column}.{side}={to!r}"
                    moved[name] = _compare(clips, before, from_dict(to_dict(recipe), [key]), (key,))
            moves.append(Notch(column, side, **moved))
    return moves


def _changed(recipe: Recipe, overrides: Sequence[str]) -> tuple[Recipe, tuple[str, ...]]:
    """Return the recipe with the overrides, and the overrides with full keys."""
    keys = tuple(_whole_key(override) for override in overrides)
    changed = from_dict(to_dict(recipe), keys)
    if dataclasses.replace(changed, select=recipe.select) != recipe:
        raise RecipeError(f"{' '.join(overrides)}: only keys under select can be tried without a build")
    return changed, keys


def _compare(clips: pa.Table, before: pa.Table, changed: Recipe, overrides: tuple[str, ...]) -> WhatIf:
    after = _selected(clips, changed)
    was, keeps = (table["keep"].to_numpy(zero_copy_only=False) for table in (before, after))
    reasons = [pc.binary_join(table["rejected_by"].cast(pa.list_(pa.string())), ",") for table in (before, after)]
    uncaptioned = pc.equal(reasons[1], "caption").to_numpy() & ~pc.equal(reasons[0], "caption").to_numpy()
    unscored = np.zeros(len(clips), bool)
    for row in np.flatnonzero(pc.not_equal(*reasons).to_numpy() & ~keeps & ~uncaptioned):
        columns = after["rejected_by"][row].as_py()
        unscored[row] = all(c in changed.select.thresholds and not clips[c][row].is_valid for c in columns)
    return WhatIf(
        overrides=overrides,
        kept=int(was.sum()),
        added=_group(clips, (keeps | uncaptioned) & ~was),
        dropped=_group(clips, was & ~keeps),
        uncaptioned=int(uncaptioned.sum()),
        unscored=_group(clips, unscored),
    )


def _selected(clips: pa.Table, recipe: Recipe) -> pa.Table:
    return select(clips, recipe, fingerprints.late_columns(recipe))


def _group(clips: pa.Table, rows: np.ndarray) -> ClipGroup:
    members = clips.select(["clip_id", "start", "end"]).filter(pa.array(rows))
    hours = (pc.sum(pc.subtract(members["end"], members["start"])).as_py() or 0.0) / 3600
    return ClipGroup(len(members), hours, tuple(sorted(members["clip_id"].to_pylist())[:EXAMPLES]))


def _neighbours(scores: pa.ChunkedArray, value: float, side: str) -> tuple[float | None, float | None]:
    """Return thresholds looser and stricter by a notch, to three digits; None where no clip lies in that direction."""
    sign = 1.0 if side == "min" else -1.0
    values = np.sort(sign * scores.drop_null().cast(pa.float64()).to_numpy())
    values = values[np.isfinite(values)]
    if not len(values):
        return None, None
    share = np.searchsorted(values, sign * value) / len(values)
    places = []
    for direction in (-1, 1):
        place = float(np.quantile(values, min(1.0, max(0.0, share + direction * NOTCH))))
        rounded = float(f"{place:.3g}")
        place = rounded if (rounded - sign * value) * direction > 0 else place
        places.append(sign * place if (place - sign * value) * direction > 0 else None)
    return places[0], places[1]


def _whole_key(override: str) -> str:
    """Return `override` with its full key."""
    first = override.partition("=")[0].partition(".")[0]
    if first in (field.name for field in dataclasses.fields(Recipe)):
        return override
    if first in (field.name for field in dataclasses.fields(SelectOptions)):
        return f"select.{override}"
    return f"select.thresholds.{override}"
