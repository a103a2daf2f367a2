"""The `ray_llm` captioner: Ray's own LLM processor (`ray.data.llm`), for clusters that host the model themselves.

Its actors belong to one Ray Data graph and end with it. A vLLM engine takes minutes to start, so the whole caption pass
is one graph (pipeline/passes/ray_llm.py) instead of one call for each batch. A server that runs already is asked by the
`server` captioner.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from captioners.api.server import pictures
from captioners.base import Caption, CaptionError, ClipFrames
from captioners.text.prompt import ENGLISH, SCHEMA, VERSION, Prompt, question_for, read_answer

if TYPE_CHECKING:
    from ray.data.llm import Processor


class RayLlm:
    """`model` is a repository or folder that vLLM loads into `workers` engines (`engine_kwargs` are vLLM's own).
    Unusable answers become errors."""

    def __init__(
        self,
        model: str,
        workers: int = 1,
        engine_kwargs: Mapping[str, Any] | None = None,
        batch: int = 64,
        max_tokens: int = 768,
        most_frames: int = 8,
        frame_side: int = 512,
        temperature: float = 0.0,
        seed: int = 0,
        instruction: str | None = None,
        language: str = ENGLISH,
    ) -> None:
        self.model, self.workers, self.batch = model, workers, batch
        self.engine_kwargs = {"limit_mm_per_prompt": {"image": most_frames}, **(engine_kwargs or {})}
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
        guided = {"structured_outputs": {"json": json.dumps(SCHEMA)}}
        return {"messages": messages, "sampling_params": {**self.sampling, **guided}}

    def read(self, clip: ClipFrames, row: Mapping[str, Any]) -> Caption | CaptionError:
        """Return the caption in the processor's row of a clip, or why there is none."""
        if not len(clip.frames):
            return CaptionError(clip.clip_id, "no frames")
        if error := row.get("__inference_error__"):
            return CaptionError(clip.clip_id, f"the model rejects this clip: {str(error)[:200]}")
        completion_tokens = int(row["num_generated_tokens"])
        usage = {"prompt_tokens": int(row["num_input_tokens"]), "completion_tokens": completion_tokens}
        ended = completion_tokens < self.sampling["max_tokens"]
        return read_answer(clip, row["generated_text"], ended, usage, self.prompt)

    def processor(self) -> Processor:
        """Build Ray's processor from rows with `request`'s columns to rows that `read` reads."""
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig

        config: Any = vLLMEngineProcessorConfig(
            model_source=self.model,
            engine_kwargs=self.engine_kwargs,
            concurrency=self.workers,
            batch_size=self.batch,
            prepare_multimodal_stage={"enabled": True, "chat_template_content_format": "openai"},
            should_continue_on_error=True,
        )
        return build_processor(config, postprocess=_without_question)


def _without_question(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("messages", "sampling_params")}
