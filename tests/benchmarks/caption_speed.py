"""Captioning speed of the `vlm` captioner beside plain `model.generate`, in one run, with Qwen2.5-VL-7B's geometry.

    python tests/benchmarks/caption_speed.py [--tiny] [--clips 512] [--new 96]

Weights are random (speed does not depend on them) and answers are not allowed to end early. Both sides get the same
prompts: 8 frames of 448x224, 1,024 visual tokens a clip. Ours includes what the CPU does to frames and prompts; plain
generate is given its inputs ready. Needs a GPU with 60 GB; --tiny runs the same code with a toy model on the CPU.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

import caption_models  # noqa: E402

from captioners.base import ClipFrames  # noqa: E402
from captioners.prompt import ASK, prompt_for  # noqa: E402
from captioners.vlm import Vlm  # noqa: E402

TEXT_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
VISION_7B = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "fullatt_block_indexes": [7, 15, 23, 31],
}


def build(tiny: bool, device: str) -> tuple[Any, Any]:
    if tiny:
        return caption_models.tiny_qwen()
    config, processor = caption_models.qwen(TEXT_7B, VISION_7B, vocabulary=152064, training=ASK)
    return caption_models.model(config, device, torch.bfloat16), processor


def make_clips(count: int) -> list[ClipFrames]:
    rng = np.random.default_rng(0)
    pool = [rng.integers(0, 255, (224, 448, 3), np.uint8) for _ in range(32)]
    times = np.linspace(0.2, 3.8, 8)
    return [ClipFrames(f"{i}", 4.0, [pool[(i + j) % 32] for j in range(8)], times) for i in range(count)]


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def plain(model: Any, inputs: dict[str, torch.Tensor], new: int, repeats: int) -> tuple[list[float], list[list[int]]]:
    """Seconds of `generate` on one batch, defaults everywhere, greedy; and what it said."""
    took, said = [], []
    for repeat in range(repeats + 1):
        synchronize()
        start = time.perf_counter()
        with torch.inference_mode():
            many = new if repeat else 2
            out = model.generate(**inputs, max_new_tokens=many, min_new_tokens=many, do_sample=False)
        said = out[:, inputs["input_ids"].shape[1] :].tolist()
        synchronize()
        took.append(time.perf_counter() - start)
    return took[1:], said


class Busy:
    """Share of time in which the GPU ran something, by its own counter, sampled ten times a second."""

    def __enter__(self) -> Busy:
        self.seen: list[int] = []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def _watch(self) -> None:
        while torch.cuda.is_available() and not self.stop.wait(0.1):
            self.seen.append(torch.cuda.utilization())

    def __str__(self) -> str:
        return f"{statistics.mean(self.seen):.0f}%" if self.seen else "-"


def parts(captioner: Vlm, clips: list[ClipFrames]) -> None:
    """Where the time goes: reading prompts, a step of all rows, and the CPU's share."""
    start = time.perf_counter()
    batch = captioner._prepared(clips[: captioner.prefill])
    prepare = time.perf_counter() - start
    decoder = captioner._decoder(batch.inputs["input_ids"].shape[1], 0.0)
    with torch.inference_mode():
        reads, steps = [], []
        for _ in range(3):
            synchronize()
            start = time.perf_counter()
            decoder._prefill(batch, list(range(captioner.prefill)))
            synchronize()
            reads.append(time.perf_counter() - start)
        decoder._advance()
        for _ in range(3):
            synchronize()
            start = time.perf_counter()
            for _ in range(8):
                decoder._advance()
            synchronize()
            steps.append((time.perf_counter() - start) / 8)
        decoder.active.zero_()
    count = captioner.prefill
    print(
        f"  prompt {batch.inputs['input_ids'].shape[1]} tokens; a clip: CPU {1000 * prepare / count:.1f} ms, prefill "
        f"{1000 * statistics.median(reads) / count:.1f} ms; a step of {captioner.rows} rows "
        f"{1000 * statistics.median(steps):.2f} ms",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--clips", type=int, default=512)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--prefill", type=int, default=32)
    parser.add_argument("--new", type=int, default=96)
    parser.add_argument("--plain-batch", type=int, default=32)
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    started = time.perf_counter()
    model, processor = build(given.tiny, device)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, model in {time.perf_counter() - started:.0f} s", flush=True)
    clips = make_clips(given.clips)

    model_attention = model.config.vision_config._attn_implementation
    captioner = Vlm(model, processor, max_new_tokens=given.new, rows=given.rows, prefill=given.prefill)
    captioner.ends = []
    block_attention = model.config.vision_config._attn_implementation
    some = clips[: given.plain_batch]  # prompts of one length: no padding on either side
    made = captioner._prompts(some, [prompt_for(clip) for clip in some])
    ours = ("position_ids", "rope_deltas")  # what we compute ahead, generate computes itself
    inputs = {name: value.to(device) for name, value in made.inputs.items() if name not in ours}
    model.set_attn_implementation({"vision_config": model_attention})
    took, said = plain(model, inputs, given.new, 2 if device == "cuda" else 1)
    reference = given.plain_batch * given.new / min(took)
    rows = [("model.generate", given.plain_batch, reference, 3600 * given.plain_batch / min(took), "-")]
    print(f"  plain generate {given.plain_batch} clips in {', '.join(f'{t:.2f}' for t in took)} s", flush=True)

    model.set_attn_implementation({"vision_config": block_attention})
    parts(captioner, clips)
    if given.profile:
        profile(captioner, clips)
    for _ in range(2):
        start = time.perf_counter()
        with Busy() as busy:
            answers = {answer.key: answer.tokens for answer in captioner.answers(clips)}
        seconds = time.perf_counter() - start
        tokens = sum(map(len, answers.values()))
        rows.append(("clipmill vlm", given.rows, tokens / seconds, 3600 * len(clips) / seconds, str(busy)))
    same = [answers[clip.clip_id][0] == told[0] for clip, told in zip(some, said, strict=True)]
    print(f"  the same first word as plain generate for {sum(same)} of {len(same)} clips (near ties turn in bf16)")
    print(f"{'':16}{'batch':>7}{'tokens/s':>10}{'clips/h':>10}{'ratio':>7}{'GPU busy':>10}")
    for label, batch, speed, hourly, used in rows:
        print(f"{label:16}{batch:7d}{speed:10.0f}{hourly:10.0f}{speed / reference:7.2f}{used:>10}", flush=True)


def profile(captioner: Vlm, clips: list[ClipFrames]) -> None:
    """The kernels that a prefill and a step spend their time in."""
    batch = captioner._prepared(clips[: captioner.prefill])
    decoder = captioner._decoder(batch.inputs["input_ids"].shape[1], 0.0)
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.inference_mode():
        for label, work in (
            ("prefill", lambda: decoder._prefill(batch, list(range(captioner.prefill)))),
            ("step", decoder._advance),
        ):
            with torch.profiler.profile(activities=activities) as trace:
                work()
                torch.cuda.synchronize()
            print(label, trace.key_averages().table(sort_by="cuda_time_total", row_limit=14, max_name_column_width=70))
        decoder.active.zero_()


if __name__ == "__main__":
    main()
