"""Where the time before the first caption goes: seconds of each step of starting a caption worker.

    python tests/benchmarks/captions/caption_start.py [--vlm FOLDER] [--clip ARCHITECTURE CHECKPOINT] [--clips 128]

Without --vlm and --clip toy models are saved and loaded, on the CPU if there is no GPU. Give the folders that
tests/benchmarks/builds/gpu_build.py writes for the models of the recipe `standard`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support"), str(Path(__file__).parent)]


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        sys.modules["torch"].cuda.synchronize()
    print(f"{name:62}{time.perf_counter() - started:8.2f} s", flush=True)


def decode_jpegs(count: int) -> Any:
    """Clips of eight 512 x 288 frames, decoded by one thread and by four."""
    import cv2
    import numpy as np

    from captioners.base import ClipFrames

    random = np.random.default_rng(0)
    picture = cv2.resize(random.integers(0, 255, (18, 32, 3), np.uint8), (512, 288), interpolation=cv2.INTER_CUBIC)
    jpeg = cv2.imencode(".jpg", picture)[1]

    def clip(number: int) -> ClipFrames:
        frames = [cv2.imdecode(jpeg, cv2.IMREAD_COLOR) for _ in range(8)]
        return ClipFrames(str(number), 4.0, frames, np.linspace(0.2, 3.8, 8))

    cv2.setNumThreads(1)
    for threads in (1, 4):
        with step(f"decode the frames of {count} clips, {threads} threads"), ThreadPoolExecutor(threads) as pool:
            clips = list(pool.map(clip, range(count)))
    return clips


def start_encoder(architecture: str, checkpoint: str) -> None:
    import open_clip

    from filters.encoders import openclip

    with step("OpenCLIP: hash of its weights"):
        openclip._weights_id(architecture, checkpoint)
    with step("OpenCLIP: construct, initialized at random"):
        open_clip.create_model(architecture)
    with step("OpenCLIP: construct, not initialized"), openclip._NotInitialized():
        open_clip.create_model(architecture)
    with step("OpenCLIP: load, hashed meanwhile"):
        openclip.OpenClip(architecture, checkpoint)


def start_captioner(folder: str, clips: Any) -> None:
    import torch

    from captioners.vlm.vlm import Vlm, load

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    from transformers import AutoModelForImageTextToText

    if importlib.util.find_spec("accelerate"):
        with step("video-language model: load with a device map"):
            model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, device_map={"": device})
        del model
        torch.cuda.empty_cache()
    with step("video-language model: load, then move to the device"):
        model, processor = load(folder, device, dtype)
    with step("kernels"):
        captioner = Vlm(model, processor, max_new_tokens=96)
    few = clips[: captioner.prefill]
    with step(f"prepare {len(few)} clips, first (copies the processor)"):
        batch = captioner._prepared(few)
    with step(f"prepare {len(few)} clips, then"):
        captioner._prepared(few)
    with step("allocate the rows"):
        decoder = captioner.make_decoder(batch.inputs["input_ids"].shape[1], captioner.rows)
    with step("first prefill (compiles)"):
        decoder.fill(batch)
    with step("eight steps, first (compiles and captures)"):
        decoder.advance()
    with step("eight steps, then"):
        decoder.advance()
    if device == "cuda":
        with step("capture of sampled steps"):
            decoder._advance(True)
    del decoder
    torch.cuda.empty_cache()
    for attempt in ("first", "second"):
        with step(f"caption {len(clips)} clips of 96 tokens, {attempt} call, retries included"):
            captioner.caption(clips)


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--vlm", help="folder of a model that transformers loads")
    parse.add_argument("--clip", nargs=2, metavar=("ARCHITECTURE", "CHECKPOINT"))
    parse.add_argument("--clips", type=int, default=128)
    given = parse.parse_args()
    with step("import torch, transformers and open_clip"):
        import torch

        from filters.torchvision_ops import ensure_torchvision

        ensure_torchvision()
        import open_clip
        from transformers import AutoModelForImageTextToText  # noqa: F401
    with tempfile.TemporaryDirectory() as folder:
        if not given.vlm:
            from tiny_models import caption_models

            given.vlm = caption_models.save(*caption_models.tiny_qwen(), Path(folder, "vlm"))
        if not given.clip:
            given.clip = ("ViT-B-32", str(Path(folder, "clip.pt")))
            torch.save(open_clip.create_model("ViT-B-32").state_dict(), given.clip[1])
        clips = decode_jpegs(given.clips)
        start_encoder(*given.clip)
        start_captioner(given.vlm, clips)


if __name__ == "__main__":
    main()
