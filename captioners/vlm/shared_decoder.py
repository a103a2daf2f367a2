"""A decoder shared by several threads, so that rows that become free are refilled with prompts of any thread.

A dedicated thread runs the decoder while prompts are running or waiting. Only this thread calls the model, whose layers
keep state during a call.
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
    """A batch with prompts that could not be answered, and the exception."""

    batch: Prompts
    error: Exception


class Waiting(NamedTuple):
    """A batch of prompts, and the function that receives its answers."""

    batch: Prompts
    receive: Callable[[Answer | Failed], None]


class SharedDecoder:
    """Answers batches from several threads. `make(tokens, most)` returns a decoder for prompts of `tokens` tokens with
    at most `most` rows. Up to `depth` batches wait for free rows."""

    def __init__(self, make: Callable[[int, int], Decoder], device: torch.device, depth: int) -> None:
        self._make, self._device, self._depth = make, device, depth
        self.decoder: Decoder | None = None
        self._most_rows = 1 << 20  # upper limit of rows, halved after each out-of-memory error
        self._changed = threading.Condition()  # guards the attributes below
        self._serving = False
        self._calls: list[Callable[[], None]] = []
        self._waiting: deque[Waiting] = deque()

    def submit(self, batch: Prompts, receive: Callable[[Answer | Failed], None]) -> None:
        """Queue a batch; block while `depth` batches wait.

        Another thread calls `receive` with one Answer per prompt, or with Failed, possibly after some of the answers.
        """
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < self._depth)
            self._waiting.append(Waiting(batch, receive))
            self._ensure_serving()

    def call(self, function: Callable[[], T]) -> T:
        """Run `function`, which calls the model, between two steps of the decoder; return its result."""
        answer = Future[T]()

        def run() -> None:
            try:
                answer.set_result(function())
            except Exception as error:
                answer.set_exception(error)

        with self._changed:
            self._calls.append(run)
            self._ensure_serving()
        return answer.result()

    def _ensure_serving(self) -> None:
        if not self._serving:
            self._serving = True
            threading.Thread(target=self._serve, name="decoder", daemon=True).start()

    def _serve(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # the current device is a property of the thread
        while True:
            with self._changed:
                calls, self._calls = self._calls, []
                running = self.decoder.running if self.decoder else {}
                if not (calls or running or self._waiting):
                    self._serving = False
                    return
            for call in calls:
                call()
            while self._waiting and self._try_fill(self._waiting[0]):
                with self._changed:
                    self._waiting.popleft()
                    self._changed.notify_all()
            self._advance()

    def _try_fill(self, waiting: Waiting) -> bool:
        """Fill free rows with a batch, or report its failure; return False if it must wait for free rows."""
        tokens, count = waiting.batch.inputs["input_ids"].shape[1], len(waiting.batch.keys)
        decoder = self.decoder
        try:
            if decoder is None or decoder.length < tokens + decoder.limit:
                if decoder is not None and decoder.running:
                    return False
                self.decoder = decoder = None  # free its caches, which fill the GPU, before the next allocation
                self.decoder = decoder = self._make(tokens, self._most_rows)
            if count > decoder.rows:
                raise torch.OutOfMemoryError(f"a batch of {count} prompts, but memory for {decoder.rows} rows")
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
