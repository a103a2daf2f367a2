"""The log of a training run: lines on the terminal, log.jsonl, and TensorBoard."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from model.training.parallel import RankContext

BINS = 10  # intervals of t for which the loss is reported
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # FLOP/s in dense bf16, from the vendor's data sheets


class Log:
    """Collects the values of a log line; losses stay on the device until it is written."""

    def __init__(self, out: Path, context: RankContext, first: int) -> None:
        self.context, self.out = context, out
        self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=first) if context.main else None
        self._last: dict[str, float] = {}
        self._reset()

    def _reset(self) -> None:
        self._since, self._waited, self._clips, self._tokens, self._flops = time.monotonic(), 0.0, 0, 0, 0.0
        self._bins = torch.zeros(2, BINS, device=self.context.device)
        self._share, self._loss = 0.0, torch.zeros((), device=self.context.device)

    def wait(self, seconds: float) -> None:
        """Add time spent waiting for data."""
        self._waited += seconds

    def losses(self, losses: Tensor, times: Tensor, samples: int) -> None:
        """Add the losses of one micro-batch at their times; `samples` in the whole step."""
        self._loss += losses.sum() / samples
        self._share += len(losses) / samples
        bins = (times * BINS).long().clamp(0, BINS - 1)
        self._bins[0].index_add_(0, bins, losses)
        self._bins[1].index_add_(0, bins, torch.ones_like(losses))

    def count(self, clips: int, flops: int, tokens: int) -> None:
        """Count clips of `flops` operations of a training step and `tokens` latent tokens each."""
        self._clips += clips
        self._tokens += tokens * clips
        self._flops += float(flops * clips)

    def write(self, step: int, norm: float, rate: float, skipped: int, replaced: int, elapsed: float) -> None:
        """Write a row; every process calls it."""
        if self.context.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.monotonic() - self._since
        sums = torch.cat(
            [self._bins.flatten(), self._loss[None], torch.tensor([self._share], device=self.context.device)]
        )
        if self.context.world > 1:
            dist.all_reduce(sums)
        bins, counts = sums[:BINS].tolist(), sums[BINS : 2 * BINS].tolist()
        name = torch.cuda.get_device_name() if self.context.device.type == "cuda" else ""
        peak = next((v for k, v in PEAK_FLOPS.items() if k in name), None)
        row: dict[str, float] = {
            "loss": float(sums[-2] / sums[-1]),
            "norm": norm,
            "lr": rate,
            "tokens_per_second": self._tokens * self.context.world / seconds,
            "clips_per_second": self._clips * self.context.world / seconds,
            "data_wait": self._waited / seconds,
            "skipped": skipped,
            "replaced": replaced,
        }
        if peak:
            row |= {"mfu": self._flops / seconds / peak, "memory_gb": torch.cuda.max_memory_allocated() / 1e9}
        row |= {f"loss_t{i / BINS:.1f}": b / c for i, (b, c) in enumerate(zip(bins, counts, strict=True)) if c}
        self._last = row
        self._reset()
        if self._writer is None:
            return
        for key, value in row.items():
            self._writer.add_scalar(f"train/{key}", value, step)
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "seconds": elapsed} | row) + "\n")
        mfu = f"  MFU {row['mfu']:.3f}  {row['memory_gb']:.0f} GB" if peak else ""
        print(
            f"step {step:6d}  loss {row['loss']:.4f}  norm {norm:.3f}  {row['tokens_per_second']:,.0f} tokens/s"
            f"{mfu}  waiting for data {row['data_wait']:.0%}",
            flush=True,
        )

    def close(self) -> dict[str, float]:
        """Return the last row."""
        if self._writer is not None:
            self._writer.close()
        return self._last
