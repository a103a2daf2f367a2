"""The worker of the pass `caption`: compute audited captions, and the scores that need one, from frames and scores."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from captioners import load_captioner
from captioners.base import Caption, CaptionerDown, CaptionError, ClipFrames, to_json
from captioners.text.audit import audit
from captioners.text.prompt import ENGLISH
from filters.base import ClipView, score
from filters.encoders.base import load_encoder
from pipeline.config.recipe import CaptionOptions, Recipe
from pipeline.engine.base import naming_worker
from pipeline.media.faults import is_machine_fault
from pipeline.passes.embed_worker import (
    DECODING_THREADS,
    Batch,
    Costs,
    Frames,
    chunks,
    clip_view,
    limit_threads,
    rows_in,
)
from pipeline.state import fingerprints
from pipeline.state.committed import join
from pipeline.state.error_log import LoggedError, logged_error, unforeseen, write_errors
from pipeline.state.units import CaptionUnit, UnitResult
from pipeline.storage.store import Store
from pipeline.tables.compaction import Runs
from pipeline.tables.fragments import IdRange, fingerprint, read_fragment, table_from, write_fragment


class CaptionModels(NamedTuple):
    """The captioner, and the filters of captions with their encoder."""

    captioner: Any
    filters: Mapping[str, Any]


class CaptionClips:
    """Captions the clips of a unit and writes them as a fragment. A failed clip is a row with `caption_error`.

    Thread-safe: while the captioner (a GPU, a server) processes one unit, another is read and a third is scored. The
    first units are read while the models load. Calls raise BuildStopped if they cannot be loaded.
    """

    def __init__(self, store: Store, recipe: Recipe, captioner: Any = None) -> None:
        limit_threads()
        self._store, self._recipe = store, recipe
        self._models = ThreadPoolExecutor(1, "models").submit(load_models, recipe, captioner)
        self._schema = fingerprints.caption_schema(recipe)
        self._fingerprint = fingerprints.caption_fingerprint(recipe)
        self._asking = threading.Lock()  # held during calls of a captioner that is not thread-safe
        self._scoring = threading.Lock()
        self._answered = 0.0  # time.perf_counter at the captioner's last answer
        self._problem = ""  # reason why the captioner stopped; waiting units then do not call it again

    def __call__(self, unit: CaptionUnit) -> UnitResult:
        errors, started = list[LoggedError](), time.perf_counter()
        rows, frames = clips_with_frames(self._store, self._recipe, unit)
        clips = {row["clip_id"]: clip_frames(row, frames[row["clip_id"]]) for row in rows}
        source_of = {row["clip_id"]: row["source_uri"] for row in rows}
        reading = time.perf_counter() - started
        captioner, _ = self._models.result()
        costs = Costs(reading)  # without the wait for the models
        with contextlib.nullcontext() if getattr(captioner, "thread_safe", False) else self._asking:
            started = time.perf_counter()
            problem, answers = self._problem, list[Caption | CaptionError]()
            if not problem:
                answers, problem = self._ask(list(clips.values()), source_of, errors)
                self._problem = self._problem or problem
            answered = time.perf_counter()
        with self._scoring:
            took = answered - max(started, self._answered)  # do not count time that overlaps with other units twice
            costs.took("captioner", max(0.0, took), len(answers))
            self._answered = max(answered, self._answered)
            rows = self._score(rows, frames, clips, answers, costs, errors)
        name = ""
        if rows:
            key = fingerprint(self._fingerprint, [row["clip_id"] for row in rows])
            name = f"state/caption/{key}.parquet"
            rows_table = table_from(rows, self._schema).sort_by("clip_id")
            write_errors(self._store, "caption", key, errors)
            write_fragment(self._store, name, rows_table, {"fingerprint": self._fingerprint})
        failed = sum(row["caption_error"] is not None for row in rows)
        return UnitResult(
            of="caption",
            amount=len(rows),
            counts={"captions": len(rows) - failed, "failed": failed},
            seconds={"total": costs.total},
            filters=costs.filters,
            fragment=name,
            unforeseen=unforeseen(errors),
            problem=problem,
        )

    def _ask(
        self, clips: Sequence[ClipFrames], source_of: Mapping[str, str], errors: list[LoggedError]
    ) -> tuple[list[Caption | CaptionError], str]:
        """Return the captioner's answers, and the reason why it stopped (empty if it did not).

        If a batch raises an exception, its clips are captioned one by one, so that only the failing clip is affected.
        """
        try:
            return self._models.result().captioner.caption(clips), ""
        except CaptionerDown as down:
            return down.done, str(down)
        except Exception as error:
            if isinstance(error, OSError) or is_machine_fault(error):
                raise
            if len(clips) == 1:
                name = clips[0].clip_id
                errors.append(logged_error(source_of[name], error, name, "captioner"))
                return [CaptionError(name, errors[-1].failure.reason)], ""
        answers: list[Caption | CaptionError] = []
        for clip in clips:
            answer, problem = self._ask([clip], source_of, errors)
            answers += answer
            if problem:
                return answers, problem
        return answers, ""

    def _columns(self, answer: Caption | CaptionError, clip: ClipFrames) -> dict[str, Any]:
        if isinstance(answer, CaptionError):
            return {"caption_error": answer.reason}
        captioner = self._models.result().captioner
        scores: Mapping[str, Any] = {}
        if self._recipe.caption.audit:
            audited = audit(answer, clip, self._recipe.caption.language == ENGLISH)
            scores = audited.score
            if getattr(captioner, "verbatim", False):
                scores = {**scores, "audit_repaired": False}
            elif audited.caption is None:
                return {**scores, "caption_error": f"audit: {audited.rejected}"}
            else:
                answer = audited.caption
        return {
            **scores,
            "caption_short": answer.short,
            "caption_dense": answer.dense,
            "caption_json": to_json(answer),
            "caption_error": None,
            "caption_by": captioner.id,
        }

    def _score(
        self,
        rows: Sequence[dict[str, Any]],
        frames: Mapping[str, Frames],
        clips: Mapping[str, ClipFrames],
        answers: Sequence[Caption | CaptionError],
        costs: Costs,
        errors: list[LoggedError],
    ) -> list[dict[str, Any]]:
        """Return the rows of the answered clips: audited captions and the scores of the filters that need a caption.

        A score whose filter raises an exception is null; the exception is appended to `errors`.
        """
        source_of = {row["clip_id"]: row["source_uri"] for row in rows}

        def failed(step: str, clip_id: str, error: Exception) -> str:
            if is_machine_fault(error):
                raise error
            errors.append(logged_error(source_of[clip_id], error, clip_id, step))
            return errors[-1].failure.reason

        captions = {}
        with costs.measure("audit", len(answers)):
            for answer in answers:
                try:
                    captions[answer.clip_id] = self._columns(answer, clips[answer.clip_id])
                except Exception as error:
                    captions[answer.clip_id] = {"caption_error": failed("audit", answer.clip_id, error)}
        rows = [row for row in rows if row["clip_id"] in captions]
        out = [{**{name: row[name] for name in ("clip_id", "source_id")}, **captions[row["clip_id"]]} for row in rows]

        def on_error(step: str, clip: ClipView, error: Exception) -> None:
            failed(step, clip.clip_id, error)

        for name, clip_filter in self._models.result().filters.items():
            with costs.measure(name, len(out)):
                views = [
                    clip_view(
                        row,
                        frames[row["clip_id"]],
                        {**row, **columns},
                        caption=columns.get("caption_dense"),
                        embedding=_embedding(row, len(frames[row["clip_id"]].pictures)),
                    )
                    for row, columns in zip(rows, out, strict=True)
                ]
                for columns, scores in zip(out, score(clip_filter, views, on_error), strict=True):
                    columns.update(scores)
        return out


def load_models(recipe: Recipe, captioner: Any = None) -> CaptionModels:
    """Return `captioner`, or else the recipe's, and the filters. Raises BuildStopped if one cannot be loaded."""
    with naming_worker("CaptionClips"):
        captioner = captioner or load_captioner(recipe.caption.captioner, fingerprints.captioner_options(recipe))
        if not fingerprints.filters_of(recipe, "caption"):
            return CaptionModels(captioner, {})
        encoder = load_encoder(recipe.encoder.name, recipe.encoder.model, recipe.encoder.pretrained)
        return CaptionModels(captioner, fingerprints.filters_of(recipe, "caption", encoder))


def clips_with_frames(store: Store, recipe: Recipe, unit: CaptionUnit) -> Batch:
    """Return the rows of a unit with the columns of the scan and embed passes, and the frames by clip_id."""
    rows: list[dict[str, Any]] = []
    frames: dict[str, Frames] = {}
    for part in unit.parts:
        with Runs(store, [read_fragment(store, name) for name in part.embedded]) as runs:
            embedded = runs.rows(part.clips.sources or IdRange())
        table = join(rows_in(store, part.clips), embedded, fingerprints.embed_schema(recipe), "embed_fragment")
        part_rows = [{**row, "metadata": part.metadata.get(row["source_id"])} for row in table.to_pylist()]
        for chunk, chunk_frames in chunks(store, part.clips.unit, part_rows, threads=DECODING_THREADS):
            rows += chunk
            frames |= chunk_frames
    return rows, frames


def with_texts(rows: pa.Table, options: CaptionOptions) -> pa.Table:
    """Return `rows` with prefix and suffix added to all captions, separated by a space, and with the column `caption`.

    `caption` is the content of a clip's .txt: the short or the dense caption, with `mix` one of them selected by
    clip_id; null for a clip without captions. Further captions of the captioner `listed` are in `caption_others`.
    """
    before = f"{options.prefix.rstrip()} " if options.prefix else ""
    after = f" {options.suffix.lstrip()}" if options.suffix else ""
    if options.captioner == "listed":
        trees = (json.loads(text) if text else {} for text in rows["caption_json"].to_pylist())
        others = [[f"{before}{text}{after}" for text in tree.get("others", ())] for tree in trees]
        rows = rows.append_column("caption_others", pa.array(others, pa.list_(pa.string())))
    for name in ("caption_short", "caption_dense") if before or after else ():
        column = pc.binary_join_element_wise(before, rows[name], after, "")
        rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    return rows.append_column("caption", _one_text(rows, options.text))


def _one_text(rows: pa.Table, text: str) -> pa.ChunkedArray:
    short, dense = rows["caption_short"], rows["caption_dense"]
    if text == "mix":
        odd = pc.is_in(pc.utf8_slice_codeunits(rows["clip_id"], 7, 8), pa.array(list("13579bdf")))
        return pc.if_else(odd, pc.coalesce(short, dense), pc.coalesce(dense, short))
    return pc.coalesce(short, dense) if text == "short" else pc.coalesce(dense, short)


def clip_frames(row: Mapping[str, Any], frames: Frames) -> ClipFrames:
    return ClipFrames(
        clip_id=row["clip_id"],
        duration=row["end"] - row["start"],
        frames=frames.pictures,
        times=frames.times - row["start"],
        scores=row,
    )


def _embedding(row: Mapping[str, Any], frames: int) -> np.ndarray:
    """Return the frame embeddings that the embed pass stored in float16: (frames, d) float32, rows of unit norm."""
    if row["frame_embeddings"] is None:
        return np.zeros((0, 0), np.float32)
    stored = np.frombuffer(row["frame_embeddings"], np.float16).astype(np.float32)
    rows = stored.reshape(frames, -1)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-9)
