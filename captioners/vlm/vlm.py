"""The `vlm` captioner: a vision-language model of transformers on a GPU or CPU, which captions many clips at once."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import numpy as np
import torch

from captioners.base import Caption, CaptionError, ClipFrames
from captioners.text.prompt import ENGLISH, VERSION, Prompt, question_for, read_answer
from captioners.vlm.decode import (
    Answer,
    Decoder,
    Prompts,
    read,
    rows_that_fit,
    shared_tokens,
    with_positions,
)
from captioners.vlm.judge import judged
from captioners.vlm.shared_decoder import Failed, SharedDecoder
from filters.base import evenly
from filters.torchvision_ops import ensure_torchvision

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

T = TypeVar("T")
U = TypeVar("U")
ROUND = 128  # tokens; the length of rows is a multiple of this


class Vlm:
    """Captions clips with a model that `AutoModelForImageTextToText` and `AutoProcessor` load from a repository or a
    folder (Qwen2.5-VL, Qwen3-VL, SmolVLM2, LLaVA-OneVision, InternVL ...).

    `frame_tokens` limits the size of a frame for models that accept any size; a token covers `token_side` x
    `token_side` pixels. `rows` clips, of any calls of `caption`, are decoded at a time, `prefill` are prefilled at a
    time, and `threads` threads prepare them; the first two are reduced if the GPU's memory is too small. After an
    unusable answer a clip is captioned again, sampled at `retry_temperature` with random numbers derived from `seed`
    and clip_id. With `verify` the model checks each sentence (see judge.py). `fixed_answers` is only for benchmarks
    with random weights: each answer has that many tokens and becomes the caption unchecked. Raises OSError if the model
    cannot be loaded.
    """

    gpu = True
    thread_safe = True

    def __init__(
        self,
        model: str | PreTrainedModel,
        processor: ProcessorMixin | None = None,
        device: str | None = None,
        dtype: str | None = None,
        max_new_tokens: int = 384,
        frame_tokens: int = 128,
        token_side: int = 28,
        most_frames: int = 8,
        rows: int = 256,
        prefill: int = 32,
        threads: int = 4,
        verify: bool = False,
        retry_temperature: float = 0.7,
        seed: int = 0,
        instruction: str | None = None,
        language: str = ENGLISH,
        fixed_answers: int = 0,
    ) -> None:
        if isinstance(model, str):
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
            dtype = dtype or ("bfloat16" if device.startswith("cuda") else "float32")
            name = model
            if (card := torch.device(device).index) is not None:
                torch.cuda.set_device(card)  # graphs are captured and kernels run on the current device
            model, processor = load(name, device, getattr(torch, dtype))
        else:
            name = model.config.name_or_path or type(model).__name__
        assert processor is not None, "a loaded model requires its processor"
        if hasattr(processor.image_processor, "do_image_splitting"):
            processor.image_processor.do_image_splitting = False  # tiling is meant for single images and costs tokens
        _speed_up(model)
        self.model, self.processor, self.device = model, processor, model.device
        # Transformers resizes with PIL for some models, SmolVLM2's in some versions: that takes no tensor of a GPU.
        bases = [base.__name__ for base in type(processor.image_processor).__mro__]
        self.pictures_on_cpu = any(name.endswith(("Pil", "PilBackend")) for name in bases)
        self.fixed = bool(fixed_answers)
        self.ends = [] if self.fixed else _end_tokens(model, processor)
        self.max_new_tokens, self.most_frames = fixed_answers or max_new_tokens, most_frames
        self.frame_pixels = frame_tokens * token_side**2
        self.rows, self.prefill, self.threads = rows, min(prefill, rows), threads
        self.verify, self.retry_temperature, self.seed = verify, retry_temperature, seed
        options = (max_new_tokens, self.frame_pixels, most_frames, verify, retry_temperature, seed)
        self.prompt = Prompt(instruction, language)
        self.id = ":".join(["vlm", str(VERSION), name, *map(str, options)]) + self.prompt.id
        self.id += f":fixed_answers={fixed_answers}" if self.fixed else ""
        self._own = threading.local()
        self._preparing = ThreadPoolExecutor(threads, thread_name_prefix="prompts")
        self._turn = threading.Lock()  # held by the call of `caption` that submits its clips
        self._shared = SharedDecoder(self.make_decoder, self.device, depth=threads)

    def caption(self, clips: Sequence[ClipFrames]) -> list[Caption | CaptionError]:
        """Return one answer per clip, in the order of `clips`. Calls from several threads share the decoder's rows."""
        read = self._round(clips, 0.0)
        again = [clip for clip in clips if isinstance(read[clip.clip_id], CaptionError) and len(clip.frames)]
        if again and self.retry_temperature > 0:
            read |= self._round(again, self.retry_temperature)
        if self.verify:
            captions = [answer for answer in read.values() if isinstance(answer, Caption)]
            read |= {caption.clip_id: caption for caption in judged(captions, clips, self)}
        return [read[clip.clip_id] for clip in clips]

    def answers(self, clips: Sequence[ClipFrames], temperature: float = 0.0) -> Iterator[Answer]:
        """Yield the model's answers as tokens, in order of completion. Raises the model's exceptions, and
        torch.OutOfMemoryError if the GPU's memory is too small for one clip."""
        pending = {clip.clip_id: clip for clip in clips if len(clip.frames)}
        received: SimpleQueue[Answer | Failed] = SimpleQueue()
        self._submit(self._groups(list(pending.values())), temperature, received)
        while pending:
            message = received.get()
            if isinstance(message, Answer):
                if pending.pop(message.key, None):
                    yield message
            elif len(message.batch.keys) > 1 and isinstance(message.error, torch.OutOfMemoryError):
                half = len(message.batch.keys) // 2
                self.prefill = max(1, min(self.prefill, half))
                group = [pending[key] for key in message.batch.keys if key in pending]
                self._submit([part for part in (group[:half], group[half:]) if part], temperature, received)
            else:
                raise message.error

    def _submit(
        self, groups: Iterable[Sequence[ClipFrames]], temperature: float, received: SimpleQueue[Answer | Failed]
    ) -> None:
        """Prepare groups of clips and submit them to the decoder, one call at a time. Retries (with a temperature) are
        few and do not wait for their turn."""
        with contextlib.nullcontext() if temperature else self._turn:
            work = functools.partial(self._prepared, temperature=temperature)
            for batch in ahead(work, groups, self._preparing, self.threads):
                self._shared.submit(batch, received.put)

    def ask(self, clips: Sequence[ClipFrames], questions: Sequence[str]) -> list[float]:
        """Return p(yes) / (p(yes) + p(no)) for one question per clip; a clip may occur repeatedly."""
        chances: list[float] = []
        for start in range(0, len(clips), self.prefill):
            part = slice(start, start + self.prefill)
            prompts = [f"{question} Answer yes or no." for question in questions[part]]
            chances += self._chances(clips[part], prompts)
        return chances

    def _chances(self, clips: Sequence[ClipFrames], questions: Sequence[str]) -> list[float]:
        yes, no = (self._word(word) for word in ("yes", "no"))
        batch = self._prompts(clips, questions)
        try:
            logits = self._shared.call(lambda: read(self.model, batch)).float()
        except torch.OutOfMemoryError:
            if len(clips) == 1:
                raise
        else:
            pair = torch.stack([logits[:, yes].logsumexp(1), logits[:, no].logsumexp(1)], 1)
            return pair.softmax(1)[:, 0].tolist()
        torch.cuda.empty_cache()
        half = len(clips) // 2
        return [*self._chances(clips[:half], questions[:half]), *self._chances(clips[half:], questions[half:])]

    def _round(self, clips: Sequence[ClipFrames], temperature: float) -> dict[str, Caption | CaptionError]:
        by_id = {clip.clip_id: clip for clip in clips}
        read: dict[str, Caption | CaptionError] = {
            clip.clip_id: CaptionError(clip.clip_id, "no frames") for clip in clips if not len(clip.frames)
        }
        for answer in self.answers(clips, temperature):
            text = self.processor.tokenizer.decode(answer.tokens, skip_special_tokens=True)
            usage = {"prompt_tokens": answer.prompt_tokens, "completion_tokens": len(answer.tokens)}
            if self.fixed:
                read[answer.key] = Caption(answer.key, text, text, usage=usage)
            else:
                read[answer.key] = read_answer(by_id[answer.key], text, answer.ended, usage, self.prompt)
        return read

    def _groups(self, clips: Sequence[ClipFrames]) -> list[list[ClipFrames]]:
        """Group clips of similar prompt length, longest first."""

        def length(clip: ClipFrames) -> tuple[int, int]:
            height, width = self._size(clip)
            return min(len(clip.frames), self.most_frames) * height * width, len(question_for(clip))

        ranked = sorted(clips, key=length, reverse=True)
        return [ranked[i : i + self.prefill] for i in range(0, len(ranked), self.prefill)]

    def _prepared(self, clips: Sequence[ClipFrames], temperature: float = 0.0) -> Prompts:
        """Return the prompts of clips in pinned or GPU memory; runs in a thread concurrently with the decoder."""
        prompts = self._on_device(clips)
        if not temperature:
            return prompts
        draws = torch.from_numpy(np.stack([self._draws(clip.clip_id) for clip in clips]))
        return dataclasses.replace(prompts, temperature=temperature, draws=draws)

    def _draws(self, clip_id: str) -> np.ndarray:
        """Return the random numbers of a clip, (max_new_tokens,) float32 in (0, 1]; they depend on `seed` and clip_id
        only."""
        digest = hashlib.sha256(f"{self.seed} {clip_id}".encode()).digest()
        random = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        return 1 - random.random(self.max_new_tokens, np.float32)

    def _on_device(self, clips: Sequence[ClipFrames]) -> Prompts:
        questions = [question_for(clip) for clip in clips]
        if self.device.type != "cuda":
            return self._prompts(clips, questions, self.prompt.instructions)
        stream = torch.cuda.Stream(self.device, priority=-1)  # high priority, so that small kernels overtake a prefill
        with torch.cuda.stream(stream):
            prompts = self._prompts(clips, questions, self.prompt.instructions)
            inputs = {k: v.to(self.model.dtype) if v.is_floating_point() else v for k, v in prompts.inputs.items()}
        stream.synchronize()
        for name, value in inputs.items():
            if value.is_cuda:
                value.record_stream(torch.cuda.current_stream(self.device))
            else:
                inputs[name] = value.contiguous().pin_memory()  # an expanded tensor cannot be pinned
        return dataclasses.replace(prompts, inputs=inputs)

    def _prompts(self, clips: Sequence[ClipFrames], questions: Sequence[str], shared: str = "") -> Prompts:
        if not hasattr(self._own, "processor"):
            self._own.processor = copy.deepcopy(self.processor)  # fast tokenizers are not thread-safe
        processor = self._own.processor
        texts, pictures = [], []
        for clip, text in zip(clips, questions, strict=True):
            chosen = evenly(len(clip.frames), self.most_frames)
            # The shared text is first. The time of each picture precedes it as text, which works with any model.
            content: list[dict[str, str]] = [{"type": "text", "text": shared + "\n"}] if shared else []
            for index in chosen:
                content += [{"type": "text", "text": f"{clip.times[index]:.1f} s: "}, {"type": "image"}]
            message: Any = {"role": "user", "content": [*content, {"type": "text", "text": "\n" + text}]}
            texts.append(processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False))
            pictures.append([self._picture(clip.frames[i], self._size(clip)) for i in chosen])
        # Some processors (InternVL's) pad on the left by default, whatever their tokenizer's setting.
        inputs = processor(text=texts, images=pictures, padding=True, padding_side="right", return_tensors="pt")
        positioned = with_positions(self.model, inputs)
        return Prompts([clip.clip_id for clip in clips], positioned, shared_tokens(self.model, positioned))

    def _picture(self, frame: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
        """Resize a frame to `size` (h, w); return (3, h, w) uint8 on the device where the processor takes it."""
        if frame.shape[:2] != size:
            frame = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA)
        device = "cpu" if self.pictures_on_cpu else self.device
        return torch.from_numpy(np.ascontiguousarray(frame)).to(device).permute(2, 0, 1)

    def _size(self, clip: ClipFrames) -> tuple[int, int]:
        """Return height and width of a frame for the model: at most `frame_pixels`, never enlarged."""
        height, width = clip.frames[0].shape[:2]
        scale = min(1.0, (self.frame_pixels / (height * width)) ** 0.5)
        return max(28, round(height * scale)), max(28, round(width * scale))

    def make_decoder(self, prompt_tokens: int, most_rows: int) -> Decoder:
        """Return a decoder with as many rows as fit into the GPU's memory, up to `rows` and `most_rows`.

        On a CPU, where unused rows cost as much time as used ones, it has the rows of one prefill.
        """
        length = -(-(prompt_tokens + self.max_new_tokens) // ROUND) * ROUND
        fit = rows_that_fit(self.model, length) // self.prefill if self.device.type == "cuda" else 1
        rows = min(self.rows, most_rows, max(1, fit) * self.prefill)
        while True:
            with contextlib.suppress(torch.OutOfMemoryError) if rows > 1 else contextlib.nullcontext():
                return Decoder(self.model, rows, length, self.max_new_tokens, self.ends)
            rows //= 2

    def _word(self, word: str) -> list[int]:
        forms = (word, word.capitalize(), f" {word}", f" {word.capitalize()}")
        encoded = [self.processor.tokenizer.encode(form, add_special_tokens=False) for form in forms]
        return sorted({tokens[0] for tokens in encoded if len(tokens) == 1}) or [encoded[0][0]]


def load(model: str, device: str, dtype: torch.dtype) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a model in evaluation mode and its processor."""
    ensure_torchvision()
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(model)
    loaded: Any = AutoModelForImageTextToText.from_pretrained(model, dtype=dtype)
    return loaded.to(device).eval(), processor


def _speed_up(model: PreTrainedModel) -> None:
    from captioners.vlm import kernels  # imports torchvision

    kernels.use_block_attention(model)
    kernels.use_row_attention(model)
    kernels.remember_geometry(model)
    kernels.linear_patches(model)
    if model.device.type == "cuda":
        kernels.align_projections(model)
        kernels.fuse_elementwise(model)


def ahead(work: Callable[[T], U], items: Iterable[T], pool: Executor, depth: int) -> Iterator[U]:
    """Yield `work(item)` in order, computed in `pool` up to `depth` items ahead of the consumer."""
    pending: deque[Future[U]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _end_tokens(model: PreTrainedModel, processor: ProcessorMixin) -> list[int]:
    ends = getattr(model.generation_config, "eos_token_id", None)
    listed = ends if isinstance(ends, list) else [ends]
    return sorted({token for token in [*listed, processor.tokenizer.eos_token_id] if token is not None})
