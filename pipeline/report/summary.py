"""The table that a build prints at its end: counts, times, and paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.engine.progress import clock
from pipeline.passes.registry import PASS_NAMES

TRACKS = ("flow", "borders")  # parts of the scan that only filters need
UNCHANGED = "nothing to do: the dataset is as the inputs and the recipe say"


def summary(out: str, info: Mapping[str, Any], unchanged: bool = False) -> str:
    """Return the closing table of `clipmill build`; `unchanged`: the build had nothing to do."""
    count, shards = info["counts"], info["shards"]
    odd = [f"{count[f'sources_{name}']} {name}" for name in ("failed", "skipped") if count[f"sources_{name}"]]
    rows = [
        ("sources", f"{count['sources']:,}" + (f" ({', '.join(odd)}: reasons in report.html)" if odd else "")),
        ("clips", f"{count['clips']:,} in {clock(3600 * count['hours_clips'])} of video"),
        ("kept", f"{count['kept']:,} in {clock(3600 * count['hours_kept'])}{_share(count['kept'], count['clips'])}"),
        *((f"  rejected by {reason}", f"{number:,}") for reason, number in count["rejected_by"].items()),
        *_by_hand(count),
        ("captions", f"{count['captions']:,}"),
        ("shards", f"{len(shards):,}, {sum(shard['bytes'] for shard in shards) / 1e6:.1f} MB"),
        *filter_rows(info["passes"]),
        *((f"{name} last took", _seconds(info["passes"][name])) for name in PASS_NAMES if name in info["passes"]),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    head = [UNCHANGED] * unchanged
    return "\n".join([*head, "", *lines, "", f"dataset  {out}", f"report   {out.rstrip('/')}/report.html"])


def filter_rows(passes: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a row for the filters of the scan, with their time beside decoding, and one for those of the embed pass,
    each with the milliseconds of a clip and the share of its clips that it rejects."""
    rows = []
    scan, embed = ((passes.get(name) or {}).get("filters") for name in ("scan", "embed"))
    if scan:
        parts, clips = passes["scan"]["parts"], max(stats["clips"] for stats in scan.values())
        spent = sum(stats["seconds"] for stats in scan.values()) + sum(parts.get(track, 0) for track in TRACKS)
        share = f", {spent / parts['decode']:.1%} of decoding" if parts.get("decode") else ""
        rows.append(("filters: scan", f"{len(scan)}, {1000 * spent / max(clips, 1):.1f} ms a clip{share}"))
    if embed:
        clips, spent = (
            max(stats["clips"] for stats in embed.values()),
            sum(stats["seconds"] for stats in embed.values()),
        )
        costs = []
        for name, stats in embed.items():
            rejected = f" (-{stats['rejected'] / stats['clips']:.0%})" if stats.get("rejected") else ""
            costs.append(f"{name} {1000 * stats['seconds'] / max(stats['clips'], 1):.0f}{rejected}")
        rows.append(("filters: embed", f"{1000 * spent / max(clips, 1):.0f} ms a clip: {', '.join(costs)}"))
    return rows


def _seconds(spent: Mapping[str, Any]) -> str:
    """Format wall-clock seconds, and the workers' seconds: passes that run at the same time share wall-clock time."""
    busy = spent["parts"].get("total")
    return f"{spent['seconds']:.1f} s" + (f" (workers busy for {busy:.1f} s)" if busy else "")


def _by_hand(count: Mapping[str, int]) -> list[tuple[str, str]]:
    lines = (
        ("  kept by hand", "kept_by_hand", ""),
        ("captions by hand", "captions_by_hand", ""),
        ("not kept by hand", "decisions_not_followed", " (why: tables/decisions)"),
        ("decisions without a clip", "decisions_vanished", " (which: tables/decisions)"),
    )
    return [(name, f"{count[key]:,}{hint}") for name, key, hint in lines if count.get(key)]


def _share(part: int, whole: int) -> str:
    return f" ({part / whole:.0%})" if whole else ""
