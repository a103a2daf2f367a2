"""What filters cost, and in which order those of the embed pass cost least.

A filter pays for itself by the clips that it takes from those after it. Where filters reject independently of each
other, the sum is least in the order of seconds a clip over the share rejected (Hellerstein and Stonebraker, SIGMOD
1993). The order decides which scores of a rejected clip are null, and so the bytes of a dataset: it is the recipe's,
and what a build measured is printed for whoever writes the next recipe.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from filters.base import Track
from pipeline.config.recipe import from_dict
from pipeline.state import fingerprints

ENCODER = "encoder"  # of frames: runs before the first filter that needs it, at the latest at the end
TRACKS = ("flow", "borders")  # parts of the scan that only its filters need
WORTH = 0.95  # share of the current cost below which a better order is reported


@dataclass(frozen=True)
class Cost:
    """`seconds` a clip, and the share of the clips that reach a filter that it rejects."""

    name: str
    seconds: float
    rejects: float = 0.0


def lines(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a dataset's information says of its filters' cost, for the closing table of a build."""
    rows = []
    scan, embed = (info["passes"].get(name) or {} for name in ("scan", "embed"))
    if scan.get("filters"):
        clips = max(stats["clips"] for stats in scan["filters"].values())
        spent = sum(stats["seconds"] for stats in scan["filters"].values()) + sum(
            scan["parts"].get(t, 0) for t in TRACKS
        )
        share = f", {spent / scan['parts']['decode']:.1%} of decoding" if scan["parts"].get("decode") else ""
        rows.append(("filters: scan", f"{len(scan['filters'])}, {1000 * spent / max(clips, 1):.1f} ms a clip{share}"))
    if embed.get("filters"):
        recipe = from_dict(info["recipe"])
        needs = [ENCODER] + [
            n
            for n, clip_filter in fingerprints.filters_of(recipe, "embed").items()
            if Track.EMBEDDING in clip_filter.needs
        ]
        measured = costs(embed["filters"])
        now = with_encoder([measured[name] for name in recipe.filters if name in measured], measured, needs)
        descriptions = [f"{c.name} {1000 * c.seconds:.0f}" + (f" (-{c.rejects:.0%})" if c.rejects else "") for c in now]
        rows.append(("filters: embed", f"{1000 * expected(now):.0f} ms a clip: {', '.join(descriptions)}"))
        better = best(measured, needs)
        if not recipe.score_all and expected(better) < WORTH * expected(now):
            names = ", ".join(cost.name for cost in better if cost.name != ENCODER)
            rows.append(("  in a better order", f"{1000 * expected(better):.0f} ms a clip: {names}"))
    return rows


def costs(filters: Mapping[str, Mapping[str, float]]) -> dict[str, Cost]:
    """From the `filters` of a pass in dataset.json."""
    return {
        name: Cost(name, stats["seconds"] / stats["clips"], stats.get("rejected", 0.0) / stats["clips"])
        for name, stats in filters.items()
        if stats.get("clips")
    }


def expected(order: Sequence[Cost]) -> float:
    """Seconds that a clip takes on average, if each filter rejects its share of whatever reaches it."""
    total, share = 0.0, 1.0
    for cost in order:
        total += share * cost.seconds
        share *= 1 - cost.rejects
    return total


def best(measured: Mapping[str, Cost], needs: Collection[str]) -> list[Cost]:
    """The order that costs least; the filters in `needs` come after the encoder, whose cost the first of them bears."""
    unordered, order = [cost for name, cost in measured.items() if name != ENCODER], list[Cost]()
    encoder = measured.get(ENCODER, Cost(ENCODER, 0.0)).seconds
    while unordered:
        waits = encoder if not any(cost.name in needs for cost in order) else 0.0
        price = {c: c.seconds + (waits if c.name in needs else 0.0) for c in unordered}
        order.append(
            min(unordered, key=lambda c: (price[c] / c.rejects if c.rejects else float("inf"), price[c], c.name))
        )
        unordered.remove(order[-1])
    return with_encoder(order, measured, needs)


def with_encoder(order: Sequence[Cost], measured: Mapping[str, Cost], needs: Collection[str]) -> list[Cost]:
    """`order` with the encoder, if it was measured, where it runs."""
    at = next((i for i, cost in enumerate(order) if cost.name in needs), len(order))
    return [*order[:at], *([measured[ENCODER]] if ENCODER in measured else []), *order[at:]]
