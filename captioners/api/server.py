"""The `server` captioner: any OpenAI-compatible endpoint (vLLM, SGLang, llama.cpp, `transformers serve`, hosted)."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2

from captioners.api.chat import ChatClient, NoAnswer, Refused
from captioners.base import Caption, CaptionerDown, CaptionError, ClipFrames
from captioners.text.prompt import ENGLISH, SCHEMA, VERSION, Prompt, question_for, read_answer
from filters.base import evenly, shrunk

FORMAT = {"type": "json_schema", "json_schema": {"name": "caption", "strict": True, "schema": SCHEMA}}
SYSTEMATIC = 8  # rejected clips in a row that are tolerated before the pass stops


class Server:
    """`model` is the model's name on the server at `base_url` (ending in /v1). The key is read from the environment
    variable `key_env` and is used in requests only.

    `concurrency` requests are in flight, and at most `requests_per_minute` are started. A request that fails is retried
    with growing pauses, up to `attempts` attempts. `prices` are per million prompt and completion tokens and give a
    caption's `usage["cost"]`. After an unusable answer the request is repeated once with another seed.
    """

    def __init__(
        self,
        model: str,
        base_url: str = "http://127.0.0.1:8000/v1",
        key_env: str = "OPENAI_API_KEY",
        concurrency: int = 16,
        requests_per_minute: float | None = None,
        timeout: float = 180.0,
        attempts: int = 6,
        longest_pause: float = 60.0,
        max_tokens: int = 768,
        most_frames: int = 8,
        frame_side: int = 512,
        temperature: float = 0.0,
        seed: int = 0,
        prices: Sequence[float] = (),
        instruction: str | None = None,
        language: str = ENGLISH,
    ) -> None:
        self.client = ChatClient(base_url, key_env, timeout, attempts, longest_pause, requests_per_minute)
        self.model, self.concurrency, self.max_tokens = model, concurrency, max_tokens
        self.most_frames, self.frame_side = most_frames, frame_side
        self.temperature, self.seed, self.prices = temperature, seed, tuple(prices)
        self.prompt = Prompt(instruction, language)
        options = ("server", VERSION, model, max_tokens, most_frames, frame_side, temperature, seed)
        self.id = ":".join(map(str, options)) + self.prompt.id
        self._guided = True  # until the server rejects a JSON schema
        self._failed: list[str] = []  # clips without an answer since the last success
        self._rejected = 0  # clips that the server rejected as bad requests since the last success
        self._lock = threading.Lock()

    def caption(self, clips: Sequence[ClipFrames]) -> list[Caption | CaptionError]:
        """Return one answer a clip, in order of `clips`. Raises CaptionerDown, with the answers so far, if the server
        refuses all requests or stays down: two clips in a row without an answer, or one if it does not list models."""
        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = [pool.submit(self._clip, clip) for clip in clips]
            try:
                return [future.result() for future in futures]
            except (NoAnswer, Refused) as error:
                self.client.stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                finished = [future for future in futures if future.done() and not future.cancelled()]
                done = [future.result() for future in finished if future.exception() is None]
                self.client.stop.clear()
                kept = [answer for answer in done if answer.clip_id not in self._failed]
                raise CaptionerDown(
                    f"captioner server: {error}. {len(kept)} of {len(clips)} clips of this batch were answered and are "
                    "kept; run the same command again to continue with the others",
                    kept,
                ) from error

    def _clip(self, clip: ClipFrames) -> Caption | CaptionError:
        if not len(clip.frames):
            return CaptionError(clip.clip_id, "no frames")
        answer, replied = self._ask(clip, self.temperature, self.seed)
        if isinstance(answer, Caption) or not replied:
            return answer
        again, _ = self._ask(clip, max(self.temperature, 0.7), self.seed + 1)
        return again if isinstance(again, Caption) else answer

    def _ask(self, clip: ClipFrames, temperature: float, seed: int) -> tuple[Caption | CaptionError, bool]:
        """Return the answer, and whether the server replied at all."""
        shown = pictures(clip, self.most_frames, self.frame_side)
        content = [
            {"type": "text", "text": self.prompt.instructions},
            *shown,
            {"type": "text", "text": question_for(clip)},
        ]
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.max_tokens,
            "temperature": temperature,
            "seed": seed,
        }
        started = time.monotonic()
        try:
            reply, attempts = self._post(body)
        except NoAnswer as error:
            with self._lock:
                self._failed.append(clip.clip_id)
                several = len(self._failed) > 1
            if several or not self.client.alive():
                raise
            return CaptionError(clip.clip_id, str(error)), False
        except ValueError as error:
            with self._lock:
                self._rejected += 1
            if self._rejected > SYSTEMATIC:
                raise Refused(f"it has rejected every clip so far: {error}") from None
            return CaptionError(clip.clip_id, f"the server rejects this clip: {error}"), False
        with self._lock:
            self._failed.clear()
            self._rejected = 0
        usage = self._usage(reply) | {"seconds": round(time.monotonic() - started, 3), "attempts": attempts}
        return read_reply(clip, reply, usage, self.prompt), True

    def _post(self, body: dict[str, Any]) -> tuple[Mapping[str, Any], int]:
        """Post with a JSON schema until the server rejects one; return the reply and the number of attempts."""
        if not self._guided:
            return self.client.post(body)
        try:
            return self.client.post({**body, "response_format": FORMAT})
        except ValueError:
            answer = self.client.post(body)  # it succeeds without the schema, so the server rejects schemas
            self._guided = False
            return answer

    def _usage(self, reply: Mapping[str, Any]) -> dict[str, float]:
        usage = token_counts(reply)
        if len(self.prices) == 2 and len(usage) == 2:
            spent = zip(self.prices, (usage["prompt_tokens"], usage["completion_tokens"]), strict=True)
            usage["cost"] = sum(price * tokens for price, tokens in spent) / 1e6
        return usage


def pictures(clip: ClipFrames, most: int, side: int) -> list[dict[str, Any]]:
    """Return up to `most` frames of the clip, `side` pixels at most, as parts of a message, each after its time."""
    parts: list[dict[str, Any]] = []
    for index in evenly(len(clip.frames), most) if len(clip.frames) else ():
        picture = shrunk(clip.frames[index], side)
        jpeg = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
        url = "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()
        parts += [
            {"type": "text", "text": f"{clip.times[index]:.1f} s:"},
            {"type": "image_url", "image_url": {"url": url}},
        ]
    return parts


def token_counts(reply: Mapping[str, Any]) -> dict[str, float]:
    """Return the token counts of prompt and answer that a chat completion contains."""
    counts = reply.get("usage") or {}
    return {k: counts[k] for k in ("prompt_tokens", "completion_tokens") if isinstance(counts.get(k), (int, float))}


def read_reply(
    clip: ClipFrames, reply: Mapping[str, Any], usage: Mapping[str, float], prompt: Prompt
) -> Caption | CaptionError:
    """Return the caption in a chat completion, or why there is none."""
    try:
        choice = reply["choices"][0]
        message = choice["message"]
        text = message.get("content") or ""
        if not isinstance(text, str):
            raise TypeError("content is not text")
    except (KeyError, IndexError, TypeError, AttributeError):
        return CaptionError(clip.clip_id, "the server's reply holds no message")
    if message.get("refusal") or choice.get("finish_reason") == "content_filter":
        return CaptionError(clip.clip_id, "refusal")
    return read_answer(clip, text, choice.get("finish_reason") != "length", usage, prompt)
