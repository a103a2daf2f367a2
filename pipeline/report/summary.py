"""What a build prints at its end: where things are, and what became of the footage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.engine.progress import clock
from pipeline.report import filter_cost

PASSES = ("sources", "scan", "embed", "caption", "pack")


def summary(out: str, info: Mapping[str, Any]) -> str:
    """The closing table of `clipmill build`."""
    count, shards = info["counts"], info["shards"]
    odd = [f"{count[f'sources_{name}']} {name}" for name in ("failed", "skipped") if count[f"sources_{name}"]]
    rows = [
        ("sources", f"{count['sources']:,}" + (f" ({', '.join(odd)}: see tables/sources)" if odd else "")),
        ("clips", f"{count['clips']:,} in {clock(3600 * count['hours_clips'])} of video"),
        ("kept", f"{count['kept']:,} in {clock(3600 * count['hours_kept'])}{_share(count['kept'], count['clips'])}"),
        *((f"  rejected by {reason}", f"{number:,}") for reason, number in count["rejected_by"].items()),
        *_by_hand(count),
        ("captions", f"{count['captions']:,}"),
        ("shards", f"{len(shards):,}, {sum(shard['bytes'] for shard in shards) / 1e6:.1f} MB"),
        *filter_cost.lines(info),
        *((f"seconds: {name}", _seconds(info["passes"][name])) for name in PASSES if name in info["passes"]),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    return "\n".join(["", *lines, "", f"dataset  {out}", f"report   {out.rstrip('/')}/report.html"])


def _seconds(spent: Mapping[str, Any]) -> str:
    """Of a clock on the wall; passes that stream into each other share it, so what their workers took is said too."""
    busy = spent["parts"].get("total")
    return f"{spent['seconds']:.1f}" + (f" (workers busy for {busy:.1f})" if busy else "")


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
