"""The `ray_llm` captioner: Ray's own LLM processors (`ray.data.llm`), for clusters that host the model themselves.

Its actors belong to one Ray Data graph and end with it. A vLLM engine takes minutes to start, so the whole caption pass
is one graph (pipeline/passes/ray_llm.py) instead of one call for each batch. For a running server prefer the `server`
captioner: Ray's HTTP processor has one request in flight per worker, retries fewer failures, and fails a whole batch
where `server` fails a clip.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import aiohttp

from captioners.api.server import FORMAT, pictures, read_reply, token_counts
from captioners.base import Caption, CaptionError, ClipFrames
from captioners.text.prompt import ENGLISH, SCHEMA, VERSION, Prompt, question_for, read_answer

if TYPE_CHECKING:
    from ray.data.llm import Processor


class RayLlm:
    """`model` is a repository or folder that vLLM loads into `workers` engines (`engine_kwargs` are vLLM's own). With
    `base_url` it is the model's name on that server, `workers` requests are in flight, and the key is in the
    environment variable `key_env`.

    Unusable answers become errors; only the HTTP processor repeats requests, with `attempts` attempts in all.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        workers: int = 1,
        engine_kwargs: Mapping[str, Any] | None = None,
        key_env: str = "OPENAI_API_KEY",
        timeout: float = 180.0,
        attempts: int = 6,
        batch: int = 64,
        max_tokens: int = 768,
        most_frames: int = 8,
        frame_side: int = 512,
        temperature: float = 0.0,
        seed: int = 0,
        instruction: str | None = None,
        language: str = ENGLISH,
    ) -> None:
        if base_url is not None and not base_url.startswith(("http://", "https://")):
            raise ValueError(f"captioner ray_llm: base_url starts with http:// or https://, got {base_url!r}")
        self.model, self.base_url, self.workers, self.batch = model, base_url, workers, batch
        self.engine_kwargs = {"limit_mm_per_prompt": {"image": most_frames}, **(engine_kwargs or {})}
        self.key_env, self.timeout, self.attempts = key_env, timeout, attempts
        self.most_frames, self.frame_side = most_frames, frame_side
        self.sampling = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        options = (model, max_tokens, most_frames, frame_side, temperature, seed)
        self.prompt = Prompt(instruction, language)
        self.id = ":".join(map(str, ["ray_llm", VERSION, *options])) + self.prompt.id

    def request(self, clip: ClipFrames) -> dict[str, Any]:
        """Return the columns that the processor reads for one clip."""
        # The instructions are a string and the question is a list. Arrow has no common type for both, so Ray keeps the
        # messages as Python objects and does not add to every part the keys of the others.
        messages = [
            {"role": "system", "content": self.prompt.instructions},
            {
                "role": "user",
                "content": [
                    *pictures(clip, self.most_frames, self.frame_side),
                    {"type": "text", "text": question_for(clip)},
                ],
            },
        ]
        if self.base_url is None:
            guided = {"structured_outputs": {"json": json.dumps(SCHEMA)}}
            return {"messages": messages, "sampling_params": {**self.sampling, **guided}}
        return {"payload": {"model": self.model, "messages": messages, "response_format": FORMAT, **self.sampling}}

    def read(self, clip: ClipFrames, row: Mapping[str, Any]) -> Caption | CaptionError:
        """Return the caption in the processor's row of a clip, or why there is none."""
        if not len(clip.frames):
            return CaptionError(clip.clip_id, "no frames")
        if self.base_url is None and not row.get("__inference_error__"):
            completion_tokens = int(row["num_generated_tokens"])
            usage = {"prompt_tokens": int(row["num_input_tokens"]), "completion_tokens": completion_tokens}
            ended = completion_tokens < self.sampling["max_tokens"]
            return read_answer(clip, row["generated_text"], ended, usage, self.prompt)
        tree = json.loads(json.dumps(row.get("http_response") or {}, default=_from_arrow))
        error = row.get("__inference_error__") or tree.get("error")
        if error:
            message = error.get("message", error) if isinstance(error, dict) else error
            return CaptionError(clip.clip_id, f"the model rejects this clip: {str(message)[:200]}")
        return read_reply(clip, tree, token_counts(tree), self.prompt)

    def processor(self) -> Processor:
        """Build Ray's processor from rows with `request`'s columns to rows that `read` reads."""
        from ray.data.llm import HttpRequestProcessorConfig, build_processor, vLLMEngineProcessorConfig

        config: Any
        if self.base_url is None:
            config = vLLMEngineProcessorConfig(
                model_source=self.model,
                engine_kwargs=self.engine_kwargs,
                concurrency=self.workers,
                batch_size=self.batch,
                prepare_multimodal_stage={"enabled": True, "chat_template_content_format": "openai"},
                should_continue_on_error=True,
            )
        else:
            config = HttpRequestProcessorConfig(
                url=f"{self.base_url.rstrip('/')}/chat/completions",
                concurrency=self.workers,
                batch_size=self.batch,
                max_retries=self.attempts - 1,
                session_factory=functools.partial(_session, self.key_env, self.timeout),
                http_request_stage={"num_cpus": 0.01},  # it mostly waits
            )
        return build_processor(config, postprocess=_without_question)


def _from_arrow(value: Any) -> Any:
    """Convert the numpy lists and numbers of Ray's blocks for JSON."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _without_question(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("payload", "messages", "sampling_params")}


def _session(key_env: str, timeout: float) -> aiohttp.ClientSession:
    """Open a session in the worker; the key is read there, so that no configuration stored by Ray contains it."""
    key = os.environ.get(key_env)
    return aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=aiohttp.ClientTimeout(total=timeout),
        response_class=_Reply,
    )


class _Reply(aiohttp.ClientResponse):
    """A response whose body, if it is not a JSON object, becomes an error of one clip instead of the pass."""

    async def json(self, **_: Any) -> Any:
        try:
            tree = await super().json(content_type=None)
        except ValueError:
            tree = None
        return (
            tree if isinstance(tree, dict) and tree else {"error": {"message": f"{self.status} without a JSON object"}}
        )
