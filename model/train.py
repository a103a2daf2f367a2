"""Training, from top to bottom: data, latents, text, model, optimiser, loop.

Nothing random has a state: noise, time, dropout and crops are functions of (seed, step, slot). A run that is stopped
and resumed, at any number of processes that divides `micro_batches`, sees the same samples with the same noise.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from model import objective
from model.backbones.base import Words, drop_words, pad_words
from model.backbones.build import export, make_backbone, make_path
from model.cli import ERRORS, parse
from model.config import Config, ConfigError, changed, from_dict, load_config, to_dict
from model.data.index import describe, latent_size, make_schedule, read_index
from model.data.loader import Clips, loading, make_loader, micro_batches, worker_count
from model.encoding import check_encoding, read_encoding
from model.errors import DataError
from model.latents.first_frame import FirstFrame, add_picture, check_first_frames
from model.latents.settle import check_base, empty_caption, encode_batch, latent_stride, settle_latents
from model.network.dit import DiT, inflate
from model.text import TextEncoder, load_text
from model.training import checkpoint
from model.training.log import Log
from model.training.memory import check_memory, device_faults
from model.training.optimise import ClipRule, clipped_step, global_norm, learning_rate, make_optimizer, update_ema
from model.training.parallel import RankContext, autocast, barrier, choose_kernels, distribute, join
from model.training.stop import StopRequest
from pipeline.storage.store import atomic

CAPTIONS_CHECKED = 256  # of the first shard, for captions that are longer than the text encoder takes


def main(argv: Sequence[str] | None = None) -> int:
    """`clipmill train`; 0 when the run is done or stopped with its state saved, 2 when it cannot start."""
    parser = argparse.ArgumentParser(
        prog="clipmill train",
        description="Train a text-to-video diffusion model on datasets. Run again with the same --out to continue.",
        epilog="example: clipmill train DATASET --out runs/wan --preset wan2.1-1.3b-lora base=diffusers:FOLDER",
    )
    args = parse(parser, argv)
    try:
        train(load_config(args.config, args.options, args.data, cuda=args.cuda, preset=args.preset), args.out)
    except ERRORS as error:
        print(f"clipmill train: {error}", file=sys.stderr)
        return 2
    return 0


def train(config: Config, out: Path) -> dict[str, float]:
    """Train to `config.steps` in folder `out`, going on from its last checkpoint; return the last logged numbers.

    Raises one of ERRORS before the first step when the run cannot work.
    """
    context = join(config.device)
    choose_kernels(config)
    if config.micro_batches % context.world:
        raise ConfigError(f"micro_batches={config.micro_batches}: set a multiple of the {context.world} processes")
    if config.quantise and context.world > 1 and config.parallel == "fsdp":
        raise ConfigError(f"quantise={config.quantise}: quantised weights cannot be sharded; set parallel=ddp")
    check_folder(config, out, context)
    encoding = read_encoding(config.data)
    check_encoding(to_dict(config), encoding)
    check_base(config, encoding)
    path = make_path(config)
    index = read_index(config.data)
    stride = latent_stride(config)
    schedule = make_schedule(index, config, stride)
    check_first_frames(config, schedule, stride, encoding)
    if context.main:
        with atomic(out / "config.json") as part:
            part.write_text(json.dumps(to_dict(config), indent=1))
    barrier()
    say(context, describe(index, schedule))
    latents = settle_latents(config, out, context, index)

    text = None if encoding else load_text(config.text, config.text_tokens, str(context.device))
    layout = text.layout if text else encoding.text_layout if encoding else {}
    empty = pad_words(text.vectors([""]) if text else [empty_caption(out)], layout)
    empty = {name: tensor.to(context.device) for name, tensor in empty.items()}
    first_frame = FirstFrame(config, latents, text)
    clips = Clips(index, schedule, config)
    if text and context.main and (line := cut_captions(text, clips)):
        say(context, line)
    shapes = ((s.batch, latents.channels, *latent_size(s.shape, latents.stride)) for s in schedule.streams)
    estimate = check_memory(config, layout, max(shapes, key=math.prod), latents.stride, context)
    torch.manual_seed(config.seed)  # of the initial weights
    model = make_backbone(config, latents.channels, layout, latents.stride)
    last = checkpoint.latest(out)
    if config.init_from and last is None and isinstance(model, DiT):
        inflate(model, checkpoint.read_weights(Path(config.init_from)))
    trained = distribute(model, config, context, estimate.keeps_gathered)
    parameters = [p for p in model.parameters() if p.requires_grad]
    say(
        context,
        f"{config.base or config.size}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters, "
        f"{sum(p.numel() for p in parameters) / 1e6:.1f} trained, on {context.world} x {context.device.type}; latents "
        f"{latents.id}, {latents.channels} channels",
    )
    say(context, f"a process needs about {estimate}")
    optimizer = make_optimizer(parameters, config)
    frozen = not config.base  # whether a checkpoint holds weights that are not trained: those of a base are in the base
    ema = {name: p.detach().clone() for name, p in model.named_parameters() if frozen or p.requires_grad}
    clip = ClipRule(config, context.device)
    first, replaced, skipped = 0, 0, torch.zeros((), device=context.device)
    if last is not None:
        state = checkpoint.restore(last, trained, optimizer, ema, frozen)
        checkpoint.check_latents(state, latents.id)
        first, replaced = state["step"], state["replaced"]
        skipped += state["skipped"]
        clip.moments += torch.tensor(state["clip"], device=context.device)
        say(context, f"going on from step {first}")

    saves = checkpoint.Checkpoints(out, config.keep)
    log = Log(out, context, first)
    rounds = config.micro_batches // context.world
    step, started = first, time.monotonic()

    def save() -> None:
        state = {"latents": latents.id, "skipped": int(skipped), "replaced": replaced, "clip": clip.moments.tolist()}
        saves.save(step, checkpoint.training_tensors(trained, optimizer, ema, frozen), state)

    batches_of_rank = micro_batches(schedule, first, config.steps, context.rank, context.world)
    loader = make_loader(clips, batches_of_rank, worker_count(config), context.device.type == "cuda")
    with StopRequest() as stop, loading(loader) as loaded, device_faults(config):
        while step < config.steps:
            waited = time.monotonic()
            try:
                batches = [next(loaded) for _ in range(rounds)]
            except DataError as error:  # a shard is gone: the processes stop together, with their state saved
                stop.reason = error
            log.wait(time.monotonic() - waited)
            if stop.agreed(context, config.max_seconds, started):
                break
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step)
            for i, batch in enumerate(batches):
                last_round = i == rounds - 1
                if isinstance(trained, nn.parallel.DistributedDataParallel):
                    trained.require_backward_grad_sync = last_round
                elif context.world > 1:
                    trained.set_requires_gradient_sync(last_round)  # type: ignore[operator]
                x0 = encode_batch(latents, batch, context.device)
                samples, tokens = (
                    schedule.samples_per_step(schedule.streams[batch.refs[0].stream]),
                    model.tokens(x0.shape),
                )
                noised = objective.make_noisy(x0, batch.refs, samples, tokens, config, path)
                words: Words = text(batch.captions) if text else pad_words(batch.words or [], layout)
                words = {name: tensor.to(context.device) for name, tensor in words.items()}
                picture = first_frame.of_batch(batch, context.device)
                x, words = add_picture(noised.x, drop_words(words, empty, noised.keep), picture)
                with autocast(config, context):
                    prediction = trained(x, noised.t, **words)
                    losses = objective.loss_per_sample(prediction, noised.target, noised.weight)
                (losses.sum() * context.world / samples).backward()
                log.losses(losses.detach(), noised.t.amax(1), samples)
                log.count(len(losses), model.step_flops(x0.shape, config.text_tokens), tokens)
                replaced += batch.replaced
            norm = global_norm(parameters)
            skipped = skipped + clipped_step(optimizer, norm, clip.limit(norm))
            update_ema(ema, model, min(config.ema, (1 + step) / (10 + step)))
            optimizer.zero_grad(set_to_none=True)
            step += 1
            if step % config.log_every == 0 or step == config.steps:
                rate, elapsed = learning_rate(config, step - 1), time.monotonic() - started
                log.write(step, float(norm), rate, int(skipped), replaced, elapsed)
            if step % config.save_every == 0 and step < config.steps:
                save()

        if step > first:
            save()
        saves.finish()
    say(
        context,
        f"step {step} of {config.steps} saved in {out}" + ("" if step == config.steps else "; run again to continue"),
    )
    last_row = log.close()
    if stop.reason:
        raise stop.reason
    if config.base and context.main and step > first:
        say(context, export(config, checkpoint.read_weights(out), out))
    return last_row


def cut_captions(text: TextEncoder, clips: Clips) -> str:
    """Return a line that says how many of the first captions are longer than the text encoder takes, or ""."""
    shard = clips.index.shard == clips.index.shard[0]
    captions = [clips.caption(sample) for sample in np.flatnonzero(shard)[:CAPTIONS_CHECKED].tolist()]
    cut = text.longer(captions)
    return (
        f"{cut} of the first {len(captions)} captions are longer than {clips.config.text_tokens} tokens and are cut"
        if cut
        else ""
    )


def check_folder(config: Config, out: Path, context: RankContext) -> None:
    """Raise ConfigError when `out` holds another run or something else."""
    path = out / "config.json"
    if path.exists():
        differing = changed(from_dict(json.loads(path.read_text())), config)
        if differing and ((out / "log.jsonl").exists() or checkpoint.latest(out)):
            raise ConfigError(f"{out} holds a run with another {', '.join(differing)}; give another --out")
        barrier()
        if differing and context.main:  # it ended before its first step, so that nothing is lost
            shutil.rmtree(out / "latents", ignore_errors=True)
            path.unlink()
    elif out.exists() and any(out.iterdir()) and context.main:
        raise ConfigError(f"{out} holds something else; give an empty or new folder")
    barrier()


def say(context: RankContext, line: str) -> None:
    """Print on the first process."""
    if context.main:
        print(line, flush=True)
