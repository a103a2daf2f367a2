"""One decoder for the prompts of several threads, so that its rows are refilled across their batches.

A thread of its own drives the decoder from the first batch until no row runs and no batch waits. It alone calls the
model, whose layers keep state during a call.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple, TypeVar

import torch

from captioners.vlm.decode import Answer, Decoder, Prompts

T = TypeVar("T")


class Failed(NamedTuple):
    """A batch some of whose prompts were not answered, and why."""

    batch: Prompts
    error: Exception


class Waiting(NamedTuple):
    """A batch, and what gets its answers."""

    batch: Prompts
    receive: Callable[[Answer | Failed], None]


class SharedDecoder:
    """`make(tokens, most)` returns a decoder for prompts of `tokens`, with `most` rows at most. Up to `depth` batches
    wait for free rows."""

    def __init__(self, make: Callable[[int, int], Decoder], device: torch.device, depth: int) -> None:
        self._make, self._device, self._depth = make, device, depth
        self.decoder: Decoder | None = None
        self._most_rows = 1 << 20  # halved where memory does not suffice
        self._changed = threading.Condition()  # guards what follows
        self._serving = False
        self._calls: list[Callable[[], None]] = []
        self._waiting: deque[Waiting] = deque()

    def submit(self, batch: Prompts, receive: Callable[[Answer | Failed], None]) -> None:
        """Have a batch answered: `receive` gets an Answer a prompt, or Failed, from another thread. Returns when fewer
        than `depth` batches wait. Before Failed some answers of the batch may have been received."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < self._depth)
            self._waiting.append(Waiting(batch, receive))
            self._serve_from_now()

    def call(self, function: Callable[[], T]) -> T:
        """Return `function()`, which calls the model, run between two steps of the decoder."""
        answer = Future[T]()

        def run() -> None:
            try:
                answer.set_result(function())
            except Exception as error:
                answer.set_exception(error)

        with self._changed:
            self._calls.append(run)
            self._serve_from_now()
        return answer.result()

    def _serve_from_now(self) -> None:
        if not self._serving:
            self._serving = True
            threading.Thread(target=self._serve, name="decoder", daemon=True).start()

    def _serve(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # of this thread
        while True:
            with self._changed:
                calls, self._calls = self._calls, []
                running = self.decoder.running if self.decoder else {}
                if not (calls or running or self._waiting):
                    self._serving = False
                    return
            for call in calls:
                call()
            while self._waiting and self._filled(self._waiting[0]):
                with self._changed:
                    self._waiting.popleft()
                    self._changed.notify_all()
            self._advance()

    def _filled(self, waiting: Waiting) -> bool:
        """Put a batch into rows, or report why it failed; False where it has to wait for rows."""
        tokens, count = waiting.batch.inputs["input_ids"].shape[1], len(waiting.batch.keys)
        decoder = self.decoder
        try:
            if decoder is None or decoder.length < tokens + decoder.limit:
                if decoder is not None and decoder.running:
                    return False
                self.decoder = decoder = None  # free its caches, which fill the GPU, before the next allocation
                self.decoder = decoder = self._make(tokens, self._most_rows)
            if count > decoder.rows:
                raise torch.OutOfMemoryError(f"{count} prompts at once, and memory for {decoder.rows}")
            if count > len(decoder.free):
                return False
            decoder.fill(waiting.batch, waiting)
        except Exception as error:
            _report(waiting, error)
        return True

    def _advance(self) -> None:
        decoder = self.decoder
        if decoder is None or not decoder.running:
            return
        try:
            answers = decoder.advance()
        except Exception as error:
            self.decoder = None
            if isinstance(error, torch.OutOfMemoryError):
                self._most_rows = max(1, decoder.rows // 2)
            for waiting in {id(row.owner): row.owner for row in decoder.running.values()}.values():
                _report(waiting, error)
            return
        for waiting, answer in answers:
            waiting.receive(answer)


def _report(waiting: Waiting, error: Exception) -> None:
    if isinstance(error, torch.OutOfMemoryError):
        error.__traceback__ = None  # its frames hold tensors
        torch.cuda.empty_cache()
    waiting.receive(Failed(waiting.batch, error))
