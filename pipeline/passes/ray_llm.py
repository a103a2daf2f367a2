"""The stage of the pass `caption` for the captioner `ray_llm`: units -> requests -> Ray's LLM processor -> captions.

The processor receives one row per clip and may return the rows in any order. Each row therefore carries its clip_id and
its CaptionPart, which locates the clip's scores. Each batch of returned rows is committed as one fragment.
"""

from __future__ import annotations

import dataclasses
import logging
import pickle
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray.data

from captioners import load_captioner
from captioners.api.ray_llm import RayLlm
from captioners.base import Caption, CaptionError, ClipFrames
from pipeline.config.recipe import Recipe
from pipeline.engine.ray_engine import Message
from pipeline.media.faults import portable
from pipeline.passes.caption_worker import CaptionClips, clip_frames, clips_with_frames
from pipeline.passes.embed_worker import limit_threads
from pipeline.state import fingerprints
from pipeline.state.units import BuildStopped, CaptionPart, CaptionUnit
from pipeline.storage.store import Store


@dataclass(frozen=True)
class AskRay:
    """A RayStage of three steps: workers that create requests, Ray's LLM processor, and workers that commit answers."""

    store: Store
    recipe: Recipe

    def through(self, data: ray.data.Dataset, blocks: int) -> ray.data.Dataset:
        for name in ("exceptions", "_internal.execution.streaming_executor_state"):  # these log complete requests
            logging.getLogger(f"ray.data.{name}").setLevel(logging.CRITICAL)
        pool = ray.data.ActorPoolStrategy(min_size=1, max_size=blocks)
        settings: dict[str, Any] = {
            "fn_constructor_args": (self.store, self.recipe),
            "num_cpus": 0.5,
            "compute": pool,
        }
        requests = data.flat_map(_Request, **settings)  # type: ignore[arg-type]
        answered = _llm(self.recipe).processor()(requests)
        return answered.map_batches(_Commit, batch_size=self.recipe.caption.batch, **settings)  # type: ignore[arg-type]

    def explain(self, error: Exception) -> None:
        """Raise BuildStopped if vLLM is not installed."""
        if "vLLM is not installed" in str(error):
            raise BuildStopped(
                "captioner ray_llm: vLLM is not installed where Ray's workers run (pip install vllm). Finished "
                "captions are kept; run the same command again to continue"
            ) from None


def _llm(recipe: Recipe) -> RayLlm:
    captioner: Any = load_captioner(recipe.caption.captioner, fingerprints.captioner_options(recipe))
    return captioner


class _Request:
    """Converts a unit to one row per clip, with the request to the model."""

    def __init__(self, store: Store, recipe: Recipe) -> None:
        limit_threads()
        self._store, self._recipe, self._llm = store, recipe, _llm(recipe)

    def __call__(self, row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        unit: CaptionUnit
        _, unit = pickle.loads(row["unit"])
        part_of = {clip: pickle.dumps(part) for part in unit.parts for clip in part.clips.clip_ids or ()}
        rows, frames = clips_with_frames(self._store, self._recipe, unit)
        for clip_row in rows:
            clip = clip_frames(clip_row, frames[clip_row["clip_id"]])
            yield {"clip_id": clip.clip_id, "part": part_of[clip.clip_id], **self._llm.request(clip)}


class _Commit:
    """Writes answered rows as a fragment of captions. It is itself the captioner of its CaptionClips: `caption` returns
    the answers of the current batch."""

    def __init__(self, store: Store, recipe: Recipe) -> None:
        self._llm, self._rows = _llm(recipe), dict[str, Mapping[str, Any]]()
        self.id = self._llm.id
        self._clips = CaptionClips(store, recipe, self)

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, list[bytes]]:
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        self._rows = {row["clip_id"]: row for row in rows}
        clips_by_part: dict[bytes, list[str]] = defaultdict(list)
        for row in rows:
            clips_by_part[row["part"]].append(row["clip_id"])
        parts = []
        for pickled, clips in sorted(clips_by_part.items()):
            part: CaptionPart = pickle.loads(pickled)
            answered = dataclasses.replace(part.clips, clip_ids=tuple(clips))
            parts.append(CaptionPart(answered, part.embedded))
        try:
            message: Message = ([self._clips(CaptionUnit(tuple(parts)))], None)
        except Exception as error:
            message = ([], portable(error))
        return {"unit": [pickle.dumps(message)]}

    def caption(self, clips: Sequence[ClipFrames]) -> list[Caption | CaptionError]:
        return [self._llm.read(clip, self._rows[clip.clip_id]) for clip in clips]
