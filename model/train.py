"""Training, from top to bottom: data, latents, text, model, optimiser, loop.

Nothing random has a state: noise, time, dropout and crops are functions of (seed, step, slot), so a run that is stopped
and resumed, at any number of processes that divides `micro_batches`, sees the same samples with the same noise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from model import checkpoint, flow
from model.config import (
    Config,
    ConfigError,
    changed,
    check_encoding,
    from_dict,
    load_config,
    read_encoding,
    to_dict,
)
from model.data import Batch, Clips, make_loader, micro_batches
from model.dit import SIZES, DiT, inflate
from model.index import DataError, describe, latent_size, make_order, read_index
from model.latents import LatentError, encode_batch, latent_stride, settle_latents
from model.log import Log
from model.memory import check_memory
from model.optimise import ClipRule, clipped_step, global_norm, learning_rate, make_optimizer, update_ema
from model.order import Draw
from model.parallel import Place, autocast, barrier, choose_kernels, join, spread
from model.text import TextEncoder, TextError, pad
from pipeline.storage.store import StorageError, atomic

OPTION = re.compile(r"\w+=")  # key=value, and no path or URL
ERRORS = (ConfigError, DataError, LatentError, TextError, StorageError, checkpoint.CheckpointError)


def main(argv: Sequence[str] | None = None) -> int:
    """`clipmill train`; 0 when the run is done or stopped with its state saved, 2 when it cannot start."""
    parser = argparse.ArgumentParser(
        prog="clipmill train",
        description="Train a text-to-video diffusion model on datasets. Run again with the same --out to go on.",
    )
    args = parse(parser, argv)
    try:
        train(load_config(args.config, args.options, args.data, cuda=args.cuda), args.out)
    except ERRORS as error:
        print(f"clipmill train: {error}", file=sys.stderr)
        return 2
    return 0


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of what makes something of datasets: data, out, config (a file's name or None), options
    ("key=value") and cuda, whether there is a GPU to use."""
    help_ = "folder or URL of a dataset, or DATASET@WEIGHT; options of model/config.py (steps=1000)"
    parser.add_argument("words", nargs="+", metavar="DATASET | key=value", help=help_)
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="for what comes of it")
    parser.add_argument("--config", metavar="FILE", help="YAML file of options")
    args = parser.parse_intermixed_args(argv)
    args.options = [word for word in args.words if OPTION.match(word)]
    args.data = [word for word in args.words if not OPTION.match(word)]
    if not args.data:
        parser.error("name a dataset")
    args.cuda = torch.cuda.is_available() and "device=cpu" not in args.options
    return args


def train(config: Config, out: Path) -> dict[str, float]:
    """Trains to `config.steps` in folder `out`, going on from its last checkpoint; returns the last logged numbers.

    Raises one of ERRORS before the first step when the run cannot work.
    """
    place = join(config.device)
    choose_kernels(config)
    if config.micro_batches % place.world:
        raise ConfigError(f"micro_batches={config.micro_batches} does not divide over {place.world} processes")
    check_folder(config, out, place)
    encoding = read_encoding(config.data)
    check_encoding(config, encoding)
    index = read_index(config.data)
    order = make_order(index, config, latent_stride(config))
    if place.main:
        with atomic(out / "config.json") as part:
            part.write_text(json.dumps(to_dict(config), indent=1))
    barrier()
    latents = settle_latents(config, out, place, index)
    say(place, describe(index, order))

    text = None if encoding else TextEncoder(config.text, config.text_tokens, str(place.device))
    width = text.width if text else encoding.text_width if encoding else 0
    shapes = ((s.batch, latents.channels, *latent_size(s.shape, latents.stride)) for s in order.streams)
    needed = check_memory(config, width, max(shapes, key=math.prod), place)
    torch.manual_seed(config.seed)  # of the initial weights
    model = DiT(SIZES[config.size], latents.channels, width, config.patch, config.attention)
    last = checkpoint.latest(out)
    if config.init_from and last is None:
        inflate(model, checkpoint.read_weights(Path(config.init_from)))
    trained = spread(model, config, place)
    parameters = [p for p in model.parameters() if p.requires_grad]
    say(
        place,
        f"{config.size}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters on "
        f"{place.world} x {place.device.type}, latents {latents.id}, {latents.channels} channels",
    )
    say(place, f"a process needs about {needed}, and some for temporary tensors")
    optimizer = make_optimizer(parameters, config)
    ema = {name: p.detach().clone() for name, p in model.named_parameters()}
    clip = ClipRule(config, place.device)
    first, replaced, skipped = 0, 0, torch.zeros((), device=place.device)
    if last is not None:
        state = checkpoint.restore(last, trained, optimizer, ema)
        checkpoint.check_latents(state, latents.id)
        first, replaced = state["step"], state["replaced"]
        skipped += state["skipped"]
        clip.moments += torch.tensor(state["clip"], device=place.device)
        say(place, f"going on from step {first}")

    loader = iter(
        make_loader(
            Clips(index, order, config),
            micro_batches(order, first, config.steps, place.rank, place.world),
            config.workers,
            place.device.type == "cuda",
        )
    )
    saves = checkpoint.Checkpoints(out, config.keep)
    log = Log(out, place, first)
    rounds = config.micro_batches // place.world
    step, started = first, time.monotonic()

    def save() -> None:
        state = {"latents": latents.id, "skipped": int(skipped), "replaced": replaced, "clip": clip.moments.tolist()}
        saves.save(step, checkpoint.training_tensors(trained, optimizer, ema), state)

    with StopRequest() as stop:
        while step < config.steps:
            waited = time.monotonic()
            try:
                batches = [next(loader) for _ in range(rounds)]
            except DataError as error:  # a shard is gone: the processes stop together, with their state saved
                stop.reason = error
            log.wait(time.monotonic() - waited)
            if stop.agreed(place, config.max_seconds, started):
                break
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step)
            for i, batch in enumerate(batches):
                last_round = i == rounds - 1
                if isinstance(trained, nn.parallel.DistributedDataParallel):
                    trained.require_backward_grad_sync = last_round
                elif place.world > 1:
                    trained.set_requires_gradient_sync(last_round)  # type: ignore[operator]
                video = encode_batch(latents, batch, place.device)
                samples = order.samples_per_step(order.streams[batch.draws[0].stream])
                x, t, target, weight, told = make_noisy(video, batch, samples, config)
                words = text(batch.captions) if text else pad(batch.vectors or [], config.text_tokens, width)
                with autocast(config, place):
                    prediction = trained(x, t, words.to(place.device) * told)
                    losses = flow.loss_per_sample(prediction, target, weight)
                (losses.sum() * place.world / samples).backward()
                log.losses(losses.detach(), t.amax(1), samples)
                log.count(len(losses), model.forward_flops(video.shape, config.text_tokens), model.tokens(video.shape))
                replaced += batch.replaced
            norm = global_norm(parameters)
            skipped = skipped + clipped_step(optimizer, norm, clip.limit(norm))
            update_ema(ema, model, min(config.ema, (1 + step) / (10 + step)))
            optimizer.zero_grad(set_to_none=True)
            step += 1
            if step % config.log_every == 0 or step == config.steps:
                log.write(
                    step,
                    float(norm),
                    learning_rate(config, step - 1),
                    int(skipped),
                    replaced,
                    time.monotonic() - started,
                )
            if step % config.save_every == 0 and step < config.steps:
                save()

        if step > first:
            save()
        saves.finish()
    say(
        place,
        f"step {step} of {config.steps} saved in {out}" + ("" if step == config.steps else "; run again to go on"),
    )
    last_row = log.close()
    if stop.reason:
        raise stop.reason
    return last_row


def make_noisy(x0: Tensor, batch: Batch, samples: int, config: Config) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x_t, t (b, T), target, weight (b, T) of the loss, and for each caption 1, or 0 if it is dropped: (b, 1, 1).

    Time is stratified over the `samples` of the step. Some samples keep their first frames clean, at t = 0 and without
    loss: that is how image-to-video and extension are learned.
    """
    frames = x0.shape[2]
    tokens = frames * x0.shape[3] * x0.shape[4] // config.patch**2
    noise = torch.stack([draw_noise(config.seed, d, x0.shape[1:], x0.device) for d in batch.draws])
    draws = np.array([np.random.default_rng((config.seed, d.step, d.slot, 1)).random(4) for d in batch.draws])
    slots = np.array([d.slot for d in batch.draws])
    times = flow.sample_time(
        torch.from_numpy((slots + draws[:, 0]) / samples),
        config.time_mean,
        config.time_std,
        flow.shift_factor(tokens, config.shift_tokens),
    )
    given = np.where(
        (draws[:, 1] < config.clean_frames) & (frames > 1), 1 + (draws[:, 2] * (frames - 1) / 2).astype(int), 0
    )
    weight = (torch.arange(frames) >= torch.from_numpy(given)[:, None]).float().to(x0.device)
    t = times[:, None].to(x0.device) * weight
    x, target = flow.noisy(x0, noise, t, config.path)
    told = torch.from_numpy(draws[:, 3] >= config.caption_dropout).float().to(x0.device)
    return x, t, target, weight, told[:, None, None]


def draw_noise(seed: int, draw: Draw, shape: Sequence[int], device: torch.device) -> Tensor:
    """The sample's noise, a function of its step and slot."""
    number = int(
        np.random.SeedSequence((seed, draw.step, draw.slot, 2)).generate_state(1, np.uint64)[0] >> np.uint64(1)
    )
    return torch.randn(*shape, generator=torch.Generator(device).manual_seed(number), device=device)


class StopRequest:
    """SIGTERM and SIGINT, which end the run after the step that they fall into; or a `reason`, as an error."""

    def __init__(self) -> None:
        self.asked = False
        self.reason: DataError | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        with contextlib.suppress(ValueError):  # not the main thread, as under Ray Train: its own signals end the run
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, *_: object) -> None:
        self.asked = True

    def agreed(self, place: Place, max_seconds: float, started: float) -> bool:
        """Whether any process was asked to stop or is out of time."""
        asked = self.asked or self.reason is not None or 0 < max_seconds < time.monotonic() - started
        if place.world > 1:
            flag = torch.tensor(float(asked))
            dist.all_reduce(flag, dist.ReduceOp.MAX)
            asked = bool(flag)
        return asked


def check_folder(config: Config, out: Path, place: Place) -> None:
    """Raises ConfigError when `out` holds another run or something else."""
    path = out / "config.json"
    if path.exists():
        differing = changed(from_dict(json.loads(path.read_text())), config)
        if differing:
            raise ConfigError(f"{out} holds a run with another {', '.join(differing)}; give another --out")
    elif out.exists() and any(out.iterdir()) and place.main:
        raise ConfigError(f"{out} holds something else; give an empty or new folder")
    barrier()


def say(place: Place, line: str) -> None:
    """Prints on the first process."""
    if place.main:
        print(line, flush=True)
