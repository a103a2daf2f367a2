"""Checkpoints: sharded, written asynchronously, and atomic.

RUN/checkpoints/step-0000100/ is a torch.distributed.checkpoint of the weights, the moving average, the optimiser and
state.json. It is written under a temporary name and renamed when complete; then the file `latest` names it.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.optim import Optimizer

from model.errors import CheckpointError
from model.training.parallel import barrier
from pipeline.storage.store import atomic


class Checkpoints:
    """The checkpoints of a run. Every rank calls every method."""

    def __init__(self, run: Path, keep: int) -> None:
        self.folder, self.keep = run / "checkpoints", keep
        self._pending: tuple[Future[Any] | None, Path, Path] | None = None

    def save(self, step: int, tensors: dict[str, Any], state: dict[str, Any]) -> None:
        """Start writing `tensors` (nested dicts of tensors) and `state` (JSON); training can continue."""
        self.finish()
        final = self.folder / f"step-{step:07d}"
        part = final.with_suffix(".part")
        if _main() and part.exists():
            shutil.rmtree(part)
        barrier()
        part.mkdir(parents=True, exist_ok=True)
        if _main():
            (part / "state.json").write_text(json.dumps(state | {"step": step}))
        future: Any = None
        if _on_gpu(tensors["ema"]):
            future = dcp.async_save(tensors, checkpoint_id=part)
        else:  # training would change tensors in main memory while they are written
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a warning that there is only one process
                dcp.save(tensors, checkpoint_id=part, no_dist=not dist.is_initialized())
        self._pending = (future, part, final)
        if future is None:
            self.finish()

    def finish(self) -> None:
        """Wait until the pending checkpoint is written, and rename it to its final name."""
        if self._pending is None:
            return
        future, part, final = self._pending
        self._pending = None
        if future is not None:
            future.result()
        barrier()
        if _main():
            if final.exists():
                shutil.rmtree(final)
            part.rename(final)
            with atomic(self.folder / "latest") as pointer:
                pointer.write_text(final.name)
            for old in sorted(self.folder.glob("step-???????"))[: -self.keep]:
                shutil.rmtree(old)
        barrier()


def latest(run: Path) -> Path | None:
    """Return the newest complete checkpoint of a run, or None."""
    pointer = run / "checkpoints" / "latest"
    if not pointer.exists():
        return None
    folder = pointer.parent / pointer.read_text().strip()
    if not re.fullmatch(r"step-\d{7}", folder.name) or not (folder / "state.json").exists():
        raise CheckpointError(
            f"{pointer} names {folder.name}, which is not a complete checkpoint; write the name of another one into it"
        )
    return folder


def training_tensors(
    model: nn.Module, optimizer: Optimizer, ema: dict[str, Tensor], frozen: bool = True
) -> dict[str, Any]:
    """Return the tensors of a checkpoint, with names that do not depend on ranks or wrappers; without `frozen`, only
    trained weights."""
    options = StateDictOptions(ignore_frozen_params=not frozen)
    weights, moments = get_state_dict(model, optimizer, options=options)
    return {"model": weights, "optimizer": moments, "ema": ema}


def restore(
    folder: Path, model: nn.Module, optimizer: Optimizer, ema: dict[str, Tensor], frozen: bool = True
) -> dict[str, Any]:
    """Load model, optimiser and moving average in place; return the saved state. Raises CheckpointError when the
    checkpoint is of another model."""
    tensors = training_tensors(model, optimizer, ema, frozen)
    saved: dict[str, Any] = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    sizes = {name.removeprefix("model."): tensor.size for name, tensor in saved.items() if name.startswith("model.")}
    if wrong := [name for name, tensor in tensors["model"].items() if sizes.get(name) != tensor.shape]:
        raise CheckpointError(f"{folder} is of another model: {', '.join(wrong[:3])} do not fit; give another --out")
    dcp.load(tensors, checkpoint_id=folder, no_dist=not dist.is_initialized())
    set_state_dict(
        model,
        optimizer,
        model_state_dict=tensors["model"],
        optim_state_dict=tensors["optimizer"],
        options=StateDictOptions(strict=frozen),
    )
    for name, value in tensors["ema"].items():
        ema[name].copy_(value)
    return _state(folder)


def read_weights(run: Path, which: str = "ema") -> dict[str, Tensor]:
    """Return the weights of a run's newest checkpoint, unsharded, in main memory; which: ema or model."""
    folder = _newest(run)
    saved = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    prefix = f"{which}."
    sizes: dict[str, Any] = {k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)}
    weights = {k: torch.empty(v.size, dtype=v.properties.dtype) for k, v in sizes.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a warning that there is only one process
        dcp.load({which: weights}, checkpoint_id=folder, no_dist=True)
    return weights


def read_state(run: Path) -> dict[str, Any]:
    """Return the state of a run's newest checkpoint."""
    return _state(_newest(run))


def check_latents(state: dict[str, Any], latents_id: str) -> None:
    """Raise CheckpointError when a checkpoint was trained on other latents."""
    if state["latents"] != latents_id:
        raise CheckpointError(f"the checkpoint is of latents {state['latents']}, these are {latents_id}")


def _newest(run: Path) -> Path:
    if (folder := latest(run)) is None:
        raise CheckpointError(f"{run}: no checkpoint in it; `clipmill train` makes one")
    return folder


def _state(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "state.json").read_text()))


def _on_gpu(tensors: dict[str, Tensor]) -> bool:
    return any(t.is_cuda for t in tensors.values())


def _main() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0
