"""Captioning speed of the `vlm` captioner beside plain `model.generate`, in one run, with Qwen2.5-VL-7B's geometry.

    python tests/benchmarks/captions/caption_speed.py [--tiny] [--clips 1024] [--rows 512] [--plain 32 128]
        [--static 128 256] [--continuous] [--profile]

Weights are random (speed does not depend on them) and answers are not allowed to end early. Both sides get the same
prompts: 8 frames of 448x224, 1,024 visual tokens a clip, 96 new tokens. Plain generate is the model as transformers
loads it, with its inputs ready on the GPU; --static adds generate with its static cache, whose steps transformers
compiles; --continuous adds transformers' continuous batching, which takes tokens only: its prompts are as long, but
no picture is encoded. Ours includes what the CPU does to frames and prompts. The bound is the
floating-point work of a clip at the rate of the model's own largest matrix product, measured in the same run. Needs a
GPU with 80 GB; --tiny runs the same code with a toy model on the CPU.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).parents[3]), str(Path(__file__).parents[2] / "support")]

from tiny_models import caption_models  # noqa: E402

from captioners.base import ClipFrames  # noqa: E402
from captioners.text.prompt import QUESTION, Prompt  # noqa: E402
from captioners.vlm.vlm import Vlm  # noqa: E402

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
    config, processor = caption_models.qwen(
        TEXT_7B, VISION_7B, vocabulary=152064, training=Prompt().instructions + QUESTION
    )
    return caption_models.model(config, device, torch.bfloat16), processor


def make_clips(count: int) -> list[ClipFrames]:
    rng = np.random.default_rng(0)
    pool = [rng.integers(0, 255, (224, 448, 3), np.uint8) for _ in range(32)]
    times = np.linspace(0.2, 3.8, 8)
    return [ClipFrames(f"{i}", 4.0, [pool[(i + j) % 32] for j in range(8)], times) for i in range(count)]


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def plain(
    model: Any, inputs: dict[str, torch.Tensor], new: int, repeats: int, **options: Any
) -> tuple[list[float], list[list[int]]]:
    """Seconds of greedy `generate` on one batch with `options`, after a warm-up; and what it said."""
    took, answers = [], []
    for repeat in range(repeats + 1):
        synchronize()
        start = time.perf_counter()
        with torch.inference_mode():
            many = new if repeat or options else 2  # a static cache compiles for its length
            out = model.generate(**inputs, max_new_tokens=many, min_new_tokens=many, do_sample=False, **options)
        answers = out[:, inputs["input_ids"].shape[1] :].tolist()
        synchronize()
        took.append(time.perf_counter() - start)
    return took[1:], answers


def continuous(config: Any, device: str, prompt: int, clips: int, new: int) -> float:
    """Tokens a second of transformers' continuous batching for `clips` prompts of `prompt` tokens, without pictures: a
    language model of the geometry of `config`, random weights, bf16."""
    from transformers import AutoModelForCausalLM, GenerationConfig, Qwen2Config

    text = config.get_text_config(decoder=True).to_dict()
    sizes = ("vocab_size", *(name for name in TEXT_7B if name != "rope_parameters"))
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(Qwen2Config(**{n: text[n] for n in sizes}), dtype=torch.bfloat16)
    random = np.random.default_rng(0)
    prompts = [random.integers(0, text["vocab_size"], prompt).tolist() for _ in range(clips)]
    settings = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0)
    took = 0.0
    for count in (min(64, clips), clips):  # the first one warms up
        synchronize()
        start = time.perf_counter()
        answers = model.eval().generate_batch(prompts[:count], generation_config=settings)
        synchronize()
        took = time.perf_counter() - start
    if not all(len(answer.generated_tokens) == new for answer in answers.values()):
        raise RuntimeError(next(str(answer.error) for answer in answers.values()))
    return new * len(answers) / took


class Busy:
    """Share of time in which the GPU ran something, by its own counter, sampled ten times a second."""

    def __enter__(self) -> Busy:
        self.percentages: list[int] = []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def _watch(self) -> None:
        while torch.cuda.is_available() and not self.stop.wait(0.1):
            self.percentages.append(torch.cuda.utilization())

    def __str__(self) -> str:
        return f"{statistics.mean(self.percentages):.0f}%" if self.percentages else "-"


def parts(captioner: Vlm, clips: list[ClipFrames]) -> None:
    """Where the time goes: reading prompts, a step of all rows, and the CPU's share."""
    start = time.perf_counter()
    batch = captioner._prepared(clips[: captioner.prefill])
    prepare = time.perf_counter() - start
    decoder = captioner.make_decoder(batch.inputs["input_ids"].shape[1], captioner.rows)
    with torch.inference_mode():
        reads, steps = [], []
        for _ in range(3):
            synchronize()
            start = time.perf_counter()
            decoder._prefill(batch, list(range(captioner.prefill)))
            synchronize()
            reads.append(time.perf_counter() - start)
        decoder._advance(sampled=False)
        for _ in range(3):
            synchronize()
            start = time.perf_counter()
            for _ in range(8):
                decoder._advance(sampled=False)
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


def work(model: Any, inputs: dict[str, torch.Tensor], new: int, shared: int = 0, trimmed: bool = False) -> float:
    """Floating-point operations of a clip: linear layers and attention; `shared` tokens are read once for all clips,
    and `trimmed` leaves out the last layer's MLP for all tokens but the last."""
    config, clips = model.config, len(inputs["input_ids"])
    text, vision = config.get_text_config(decoder=True), config.vision_config
    prompt = inputs["input_ids"].shape[1]
    patches = len(inputs["pixel_values"]) / clips
    frames = len(inputs["image_grid_thw"]) / clips
    weights = {name: m.weight.numel() for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    tower = sum(n for name, n in weights.items() if "visual.blocks" in name)
    merger = sum(n for name, n in weights.items() if "merger" in name) / vision.spatial_merge_size**2
    layers = sum(n for name, n in weights.items() if "language_model.layers" in name)
    read = prompt - shared
    linear = (tower + merger) * patches + layers * (read + new - 1) + weights["lm_head"] * new
    if trimmed:
        last = f"language_model.layers.{text.num_hidden_layers - 1}.mlp"
        linear -= (read - 1) * sum(n for name, n in weights.items() if last in name)
    pairs = read * (shared + read / 2) + new * prompt
    attended = frames * (patches / frames) ** 2 * len(vision.fullatt_block_indexes)  # windows are small beside it
    return 2 * linear + 4 * text.hidden_size * text.num_hidden_layers * pairs + 4 * vision.hidden_size * attended


def ceiling(model: Any) -> float:
    """Operations a second of the decoder's widest matrix product over a prefill's tokens, sustained for a second."""
    if not torch.cuda.is_available():
        return float("nan")
    weight = next(m.weight for name, m in model.named_modules() if name.endswith("gate_proj"))
    states = torch.randn(32 * 1024, weight.shape[1], device=weight.device, dtype=weight.dtype)
    start, done = 0.0, -20  # the first 20 warm up
    while done <= 0 or time.perf_counter() - start < 1.0:
        for _ in range(20):
            torch.nn.functional.linear(states, weight)
        synchronize()
        done += 20
        start = start if done else time.perf_counter()
    return 2 * states.shape[0] * weight.numel() * done / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--clips", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--prefill", type=int, default=32)
    parser.add_argument("--new", type=int, default=96)
    parser.add_argument("--plain", type=int, nargs="+", default=[32, 128], help="batch sizes of plain generate")
    parser.add_argument("--static", type=int, nargs="*", default=[], help="batch sizes of generate, static cache")
    parser.add_argument("--continuous", action="store_true", help="transformers' continuous batching of tokens")
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)  # as in the caption pass: threads that prepare clips share the cores
    started = time.perf_counter()
    model, processor = build(given.tiny, device)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, model in {time.perf_counter() - started:.0f} s", flush=True)
    clips = make_clips(given.clips)
    rows, generated, needed = [], [], 0.0
    blank = Vlm(caption_models.model(copy.deepcopy(model.config), "meta"), processor)  # makes prompts, never answers
    blank.device = model.device
    for batch in given.plain:
        ready = blank._prepared(clips[:batch])
        ours = ("position_ids", "rope_deltas")  # what we compute ahead, generate computes itself
        inputs = {name: value.to(device) for name, value in ready.inputs.items() if name not in ours}
        took, tokens = plain(model, inputs, given.new, 1)
        rows.append(("model.generate", batch, batch * given.new / min(took), 3600 * batch / min(took), "-"))
        generated, needed = generated or tokens, work(model, inputs, given.new)
        print(f"  plain generate {batch} clips in {', '.join(f'{t:.2f}' for t in took)} s", flush=True)
    for batch in given.static:
        ready = blank._prepared(clips[:batch])
        inputs = {name: value.to(device) for name, value in ready.inputs.items() if name not in ours}
        try:
            took, _ = plain(model, inputs, given.new, 1, cache_implementation="static")
        except Exception as error:  # too large for the GPU, or a model that does not compile: a finding
            print(f"  static cache, {batch} clips: {type(error).__name__}: {str(error)[:300]}", flush=True)
            continue
        rows.append(("static cache", batch, batch * given.new / min(took), 3600 * batch / min(took), "-"))
        print(f"  static cache {batch} clips in {min(took):.2f} s", flush=True)
    if given.continuous:
        try:
            speed = continuous(model.config, device, ready.inputs["input_ids"].shape[1], given.clips, given.new)
            rows.append(("continuous", given.clips, speed, 3600 * speed / given.new, "-"))
            print(f"  continuous batching, tokens only: {speed:.0f} tokens/s", flush=True)
        except Exception as error:
            print(f"  continuous batching: {type(error).__name__}: {str(error)[:300]}", flush=True)
    less = work(model, inputs, given.new, ready.shared, trimmed=True)
    rate = ceiling(model)
    del inputs
    if device == "cuda":
        torch.cuda.empty_cache()

    captioner = Vlm(model, processor, max_new_tokens=given.new, rows=given.rows, prefill=given.prefill)
    captioner.ends = []
    parts(captioner, clips)
    if given.profile:
        profile(captioner, clips)
    for count in (given.prefill, given.clips):  # the first one warms up
        start = time.perf_counter()
        with Busy() as busy:
            answers = {answer.key: answer.tokens for answer in captioner.answers(clips[:count])}
        seconds = time.perf_counter() - start
    speed = sum(map(len, answers.values())) / seconds
    rows.append(("clipmill vlm", given.rows, speed, 3600 * len(clips) / seconds, str(busy)))
    same = [answers[clip.clip_id][0] == expected[0] for clip, expected in zip(clips, generated, strict=False)]
    print(f"  the same first word as plain generate for {sum(same)} of {len(same)} clips (near ties turn in bf16)")
    bound = given.new * rate / less
    print(
        f"  TFLOP a clip: {needed / 1e12:.1f}, {less / 1e12:.1f} with {ready.shared} tokens shared and a layer trimmed"
    )
    print(f"  bound at {rate / 1e12:.0f} TFLOP/s of matrix products {bound:.0f} tokens/s: {speed / bound:.0%} reached")
    against = "".join(f"{f'x {batch}':>8}" for _, batch, *_ in rows[:-1])
    print(f"{'':16}{'batch':>7}{'tokens/s':>10}{'clips/h':>10}{against}{'GPU busy':>10}")
    for label, batch, speed, hourly, used in rows:
        ratios = "".join(f"{speed / reference[2]:8.2f}" for reference in rows[:-1])
        print(f"{label:16}{batch:7d}{speed:10.0f}{hourly:10.0f}{ratios}{used:>10}", flush=True)


def profile(captioner: Vlm, clips: list[ClipFrames]) -> None:
    """The kernels that a prefill and a step spend their time in."""
    batch = captioner._prepared(clips[: captioner.prefill])
    decoder = captioner.make_decoder(batch.inputs["input_ids"].shape[1], captioner.rows)
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.inference_mode():
        for label, work in (
            ("prefill", lambda: decoder._prefill(batch, list(range(captioner.prefill)))),
            ("step", lambda: decoder._advance(False)),
        ):
            with torch.profiler.profile(activities=activities) as trace:
                work()
                torch.cuda.synchronize()
            print(label, trace.key_averages().table(sort_by="cuda_time_total", row_limit=14, max_name_column_width=70))
        decoder.active.zero_()


if __name__ == "__main__":
    main()
