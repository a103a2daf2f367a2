"""The arms of curation_effect.py: which clips of the noisy corpus, and which windows of them, a run trains on."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def arms_of(junk: Sequence[str], reasons: Sequence[Sequence[str]]) -> dict[str, list[bool]]:
    """Return which clips each arm trains on, by their junk and the reasons for which the recipe rejects them."""
    arms = {
        "raw": [True for _ in junk],
        "kept": [not why for why in reasons],
        "clean": [name == "none" for name in junk],
    }
    for reason in sorted({why[0] for why in reasons if len(why) == 1}):
        arms[f"kept+{reason}"] = [not why or list(why) == [reason] for why in reasons]
    for name in sorted(set(junk) - {"none"}):
        arms[f"raw-{name}"] = [each != name for each in junk]
    return arms


def windows_of(arm: str, seed: int, arms: dict[str, list[bool]], clip: torch.Tensor) -> torch.Tensor:
    """Return the numbers of the windows that `arm` trains on; `clip` is the clip of each window."""
    other = arm.partition("~")[2]
    if not other:
        return torch.tensor(arms[arm])[clip].nonzero().squeeze(1)
    size = len(windows_of(other, seed, arms, clip))
    order = torch.randperm(len(arms["raw"]), generator=torch.Generator().manual_seed(seed))
    counts = torch.bincount(clip, minlength=len(order))[order].cumsum(0)
    chosen = torch.zeros(len(order), dtype=torch.bool)
    chosen[order[: int((counts < size).sum()) + 1]] = True
    return chosen[clip].nonzero().squeeze(1)
