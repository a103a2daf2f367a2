"""The `vlm` captioner: a video-language model of transformers, on a GPU or the CPU, answering many clips at once."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
    trim_last_layer,
    with_positions,
)
from captioners.vlm.judge import judged
from filters.base import evenly
from filters.torchvision_ops import ensure_torchvision

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

T = TypeVar("T")
U = TypeVar("U")
ROUND = 128  # tokens: lengths of rows are multiples of this


class Vlm:
    """`model` is a repository or folder that `AutoModelForImageTextToText` and `AutoProcessor` load (Qwen2.5-VL,
    Qwen3-VL, SmolVLM2, LLaVA-OneVision, InternVL ...).

    `frame_tokens` bounds a frame's size, for models that take pictures of any size: a token is `token_side` pixels
    square. `rows` clips are decoded at once, `prefill` are prefilled at a time, `threads` prepare them. After an
    unusable answer a clip is captioned once more, sampled at `retry_temperature`. With `verify` the model checks each
    sentence (see judge.py). `fixed_answers` is for benchmarks with random weights alone: every answer has that many
    tokens and is taken as the caption as it is. Raises OSError if the model cannot be loaded.
    """

    gpu = True

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
        assert processor is not None, "a model that is already loaded comes with its processor"
        if hasattr(processor.image_processor, "do_image_splitting"):
            processor.image_processor.do_image_splitting = False  # tiles are for single stills and cost tokens
        _speed_up(model)
        self.model, self.processor, self.device = model, processor, model.device
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
        self._decoder: Decoder | None = None

    def caption(self, clips: Sequence[ClipFrames]) -> list[Caption | CaptionError]:
        """Return one answer a clip, in order of `clips`. Many clips a call are faster: ended rows are refilled."""
        read = self._round(clips, 0.0)
        again = [clip for clip in clips if isinstance(read[clip.clip_id], CaptionError) and len(clip.frames)]
        if again and self.retry_temperature > 0:
            torch.manual_seed(self.seed)
            read |= self._round(again, self.retry_temperature)
        if self.verify:
            captions = [answer for answer in read.values() if isinstance(answer, Caption)]
            read |= {caption.clip_id: caption for caption in judged(captions, clips, self)}
        return [read[clip.clip_id] for clip in clips]

    def answers(self, clips: Sequence[ClipFrames], temperature: float = 0.0) -> Iterator[Answer]:
        """Yield the model's raw answers as tokens, in the order in which they end."""
        groups = self._groups([clip for clip in clips if len(clip.frames)])
        batches = ahead(self._prepared, groups, self.threads, depth=2 * self.threads)
        first = next(batches, None)
        if first is None:
            return
        longest = first.inputs["input_ids"].shape[1]  # groups come longest first
        yield from self._decoder_for(longest).run(itertools.chain([first], batches), temperature)

    def ask(self, clips: Sequence[ClipFrames], questions: Sequence[str]) -> list[float]:
        """Return the probability of yes against no, 0 to 1, for one question a clip (a clip may occur repeatedly)."""
        yes, no = (self._word(word) for word in ("yes", "no"))
        chances: list[float] = []
        for start in range(0, len(clips), self.prefill):
            part = slice(start, start + self.prefill)
            prompts = [f"{question} Answer yes or no." for question in questions[part]]
            logits = read(self.model, self._prompts(clips[part], prompts)).float()
            pair = torch.stack([logits[:, yes].logsumexp(1), logits[:, no].logsumexp(1)], 1)
            chances += pair.softmax(1)[:, 0].tolist()
        return chances

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

    def _prepared(self, clips: Sequence[ClipFrames]) -> Prompts:
        """Return the result of `_prompts`, in memory that the GPU can read at once; runs in a thread in parallel to the
        GPU's other work."""
        questions = [question_for(clip) for clip in clips]
        if self.device.type != "cuda":
            return self._prompts(clips, questions, self.prompt.instructions)
        stream = torch.cuda.Stream(self.device, priority=-1)  # its small kernels must not queue behind a prefill
        with torch.cuda.stream(stream):
            prompts = self._prompts(clips, questions, self.prompt.instructions)
            inputs = {k: v.to(self.model.dtype) if v.is_floating_point() else v for k, v in prompts.inputs.items()}
        stream.synchronize()
        for name, value in inputs.items():
            if value.is_cuda:
                value.record_stream(torch.cuda.current_stream(self.device))
            else:
                inputs[name] = value.pin_memory()
        return dataclasses.replace(prompts, inputs=inputs)

    def _prompts(self, clips: Sequence[ClipFrames], questions: Sequence[str], shared: str = "") -> Prompts:
        if not hasattr(self._own, "processor"):
            self._own.processor = copy.deepcopy(self.processor)  # fast tokenizers cannot be shared by threads
        processor = self._own.processor
        texts, pictures = [], []
        for clip, text in zip(clips, questions, strict=True):
            chosen = evenly(len(clip.frames), self.most_frames)
            # The shared text comes first; each picture follows its time as text, which any model understands.
            content: list[dict[str, str]] = [{"type": "text", "text": shared + "\n"}] if shared else []
            for index in chosen:
                content += [{"type": "text", "text": f"{clip.times[index]:.1f} s: "}, {"type": "image"}]
            message: Any = {"role": "user", "content": [*content, {"type": "text", "text": "\n" + text}]}
            texts.append(processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False))
            pictures.append([self._picture(clip.frames[i], self._size(clip)) for i in chosen])
        # Some processors (InternVL's) pad on the left, whatever their tokenizer says.
        inputs = processor(text=texts, images=pictures, padding=True, padding_side="right", return_tensors="pt")
        positioned = with_positions(self.model, inputs)
        return Prompts([clip.clip_id for clip in clips], positioned, shared_tokens(self.model, positioned))

    def _picture(self, frame: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
        """Return (3, h, w) uint8 on the model's device, where the processor continues."""
        if frame.shape[:2] != size:
            frame = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA)
        return torch.from_numpy(np.ascontiguousarray(frame)).to(self.device).permute(2, 0, 1)

    def _size(self, clip: ClipFrames) -> tuple[int, int]:
        """Return height and width of a frame for the model: at most `frame_pixels`, never enlarged."""
        height, width = clip.frames[0].shape[:2]
        scale = min(1.0, (self.frame_pixels / (height * width)) ** 0.5)
        return max(28, round(height * scale)), max(28, round(width * scale))

    def _decoder_for(self, prompt_tokens: int) -> Decoder:
        length = -(-(prompt_tokens + self.max_new_tokens) // ROUND) * ROUND
        if self._decoder is None or self._decoder.length < length:
            self._decoder = None  # free its caches, which fill the GPU, before the next allocation
            rows = min(self.rows, max(1, rows_that_fit(self.model, length) // self.prefill) * self.prefill)
            self._decoder = Decoder(self.model, rows, length, self.max_new_tokens, self.ends)
        return self._decoder

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
    trim_last_layer(model)
    if model.device.type == "cuda":
        kernels.align_projections(model)
        kernels.fuse_elementwise(model)


def ahead(work: Callable[[T], U], items: Iterable[T], threads: int, depth: int) -> Iterator[U]:
    """Yield `work(item)` in order, computed by threads up to `depth` items ahead, so that a GPU need not wait."""
    pending: deque[Future[U]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _end_tokens(model: PreTrainedModel, processor: ProcessorMixin) -> list[int]:
    ends = getattr(model.generation_config, "eos_token_id", None)
    listed = ends if isinstance(ends, list) else [ends]
    return sorted({token for token in [*listed, processor.tokenizer.eos_token_id] if token is not None})
