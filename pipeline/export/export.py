"""`clipmill export`: the exporters by name, and one export from checks to summary."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config.recipe import from_dict
from pipeline.config.video_models import MODELS, VideoModel, nearest, video_model
from pipeline.dataset.finish import DatasetError
from pipeline.engine.progress import counted
from pipeline.export.formats import folders, hub, hugging_face, lists, simpletuner
from pipeline.export.formats.table import WRITERS, write_table
from pipeline.export.job import Exporter, Job
from pipeline.export.layout import export_folder, write_csv
from pipeline.export.reader import Dataset, read_dataset
from pipeline.export.usability import Finding, Reads, commonest_size, findings, frame_buckets, usable_frames
from pipeline.pack.companions import endings
from pipeline.storage.store import Store

OWN_RATE = Reads(converts=False)  # videos only, at the rate of the file
OWN_RATE_STILLS = Reads(converts=False, stills=True)
READS_ALL = Reads(converts=True, stills=True)
EXPORTERS: Mapping[str, Exporter] = {
    "musubi": Exporter("musubi-tuner", folders.musubi, READS_ALL, takes_control=True),
    "diffusion-pipe": Exporter(
        "diffusion-pipe", folders.diffusion_pipe, Reads(converts=True, stills=True, loses=1), takes_control=True
    ),
    "ai-toolkit": Exporter("ai-toolkit", folders.ai_toolkit, READS_ALL),
    "ltx": Exporter("LTX-2 trainer", lists.ltx, OWN_RATE_STILLS, "ltx", takes_control=True),
    "simpletuner": Exporter("SimpleTuner", simpletuner.write, OWN_RATE_STILLS),
    "diffsynth": Exporter("DiffSynth-Studio", lists.diffsynth, OWN_RATE_STILLS, takes_control=True),
    "finetrainers": Exporter("finetrainers", lists.finetrainers, OWN_RATE),
    "fastvideo": Exporter("FastVideo", lists.fastvideo, Reads(converts=True)),
    "videox-fun": Exporter("VideoX-Fun", lists.videox_fun, OWN_RATE_STILLS, takes_control=True),
    "automodel": Exporter("NeMo AutoModel", lists.automodel, Reads(converts=False, spreads=True)),
    "cosmos": Exporter("Cosmos-Predict2", lists.cosmos, Reads(converts=False, loses=1), "cosmos-predict2"),
    "open-sora": Exporter("Open-Sora 2", lists.open_sora, OWN_RATE_STILLS, "open-sora"),
    "videofolder": Exporter("Hugging Face VideoFolder", hugging_face.videofolder, Reads(converts=True)),
    "hf-parquet": Exporter("Hugging Face Parquet", hugging_face.hf_parquet, Reads(converts=True)),
    "hub": Exporter("the Hugging Face Hub", hub.write, None),
}
NAMES = (*EXPORTERS, *WRITERS)
LISTED = "unused_clips.csv"  # in an export: the clips that the trainer would drop or change, with the reason


def export(dataset: str, to: str, out: Path, model: str | None = None, control: str | None = None) -> str:
    """Export a dataset to the folder `out` (for a table: the file) in the layout of `to`, one of NAMES; return what
    to print.

    With `model`, or where the trainer or the dataset's recipe is for one model, the clips that the trainer would drop
    or show wrongly are counted by reason, and listed in LISTED; they are exported like all others. Raises DatasetError
    for an unknown name, a dataset that cannot be read, or a folder that holds something else; RecipeError for an
    unknown model. With `control`, a companion of the dataset that is a video, its videos are written where the
    layout has a place for control videos, and clips without are left out; DatasetError where either has none.
    """
    if to not in NAMES:
        raise DatasetError(f"unknown export {to!r}{nearest(to, NAMES)}")
    if control is not None and not (to in EXPORTERS and EXPORTERS[to].takes_control):
        takers = ", ".join(name for name, exporter in EXPORTERS.items() if exporter.takes_control)
        raise DatasetError(f"--control: the layout of {to} has no place for control videos; there are {takers}")
    if to in WRITERS:
        return f"{counted(write_table(Store(dataset), out, to), 'clips')} written to {out}"
    exporter = EXPORTERS[to]
    if model is not None:
        video_model(model)
    data = read_dataset(dataset)
    if not data.index.num_rows:
        raise DatasetError(f"{dataset} has no clips: nothing to export")
    name, chosen = _model(data, exporter, model)
    job = _job(data, exporter, out.absolute(), chosen, _control(data, control))
    about = {"to": to, "dataset": data.store.uri, "model": name} | ({"control": control} if control else {})
    with export_folder(job.out, about):
        unused = findings(data.index, exporter.reads, chosen) if exporter.reads and name else []
        if unused:
            write_csv(job.out / LISTED, ("key", "effect", "reason"), _listed(data.index, unused))
        steps = exporter.write(job)
    return "\n".join([_headline(job, exporter, name), *_effects(job, unused), *(f"next: {step}" for step in steps)])


def _model(data: Dataset, exporter: Exporter, model: str | None) -> tuple[str | None, VideoModel]:
    """Return the name and row of the model: the requested one, the trainer's only one, or the recipe's. Without any,
    return no name, and frame counts that most models take at the dataset's most common rate."""
    name = model or exporter.model or data.info["recipe"]["pack"].get("model")
    if name in MODELS:
        return name, MODELS[name]
    rates = Counter(fps for fps in data.index["fps"].to_pylist() if fps)
    fps = min(rates, key=lambda rate: (-rates[rate], rate)) if rates else MODELS["any"].fps
    return None, dataclasses.replace(MODELS["any"], multiple=4, fps=fps)


def _control(data: Dataset, control: str | None) -> str:
    """The companion that is written as control video, "" for none. Raises DatasetError if the dataset lacks it."""
    if control is None:
        return ""
    videos = [m for m, end in endings(from_dict(data.info["recipe"]).pack).items() if end.endswith(".mp4")]
    if control not in videos:
        hint = f"there are {', '.join(videos)}" if videos else "build it with pack.companions"
        raise DatasetError(f"--control: the dataset has no companion videos {control!r}; {hint}")
    return control


def _job(data: Dataset, exporter: Exporter, out: Path, model: VideoModel, control: str) -> Job:
    usable = usable_frames(data.index, exporter.reads or READS_ALL, model)
    moving = int(data.moving.sum())
    return Job(
        dataset=data,
        out=out,
        model=model,
        frames=frame_buckets(usable),
        size=commonest_size(data.index, model.pixels),
        videos=moving,
        stills=0 if control else data.index.num_rows - moving,
        control=control,
    )


def _listed(index: pa.Table, unused: Sequence[Finding]) -> list[tuple[str, str, str]]:
    """Return (key, effect, reason) of every clip that is dropped or altered, by reason and key."""
    rows: list[tuple[str, str, str]] = []
    for finding in unused:
        keys = index["key"].take(pa.array(np.flatnonzero(finding.clips))).to_pylist()
        rows += [(key, finding.effect, finding.reason) for key in sorted(keys)]
    return rows


def _headline(job: Job, exporter: Exporter, model: str | None) -> str:
    stills = f" and {counted(job.stills, 'still images')}" if job.stills else ""
    about = f"{counted(job.videos, 'videos')}{stills} for {exporter.title} in {job.out}"
    if exporter.reads is None:
        return about
    counts = ", ".join(map(str, job.frames)) or "none"
    return f"{about}; {model or 'any model'} at {job.model.fps:g} fps, frames {counts}, {job.size[0]}x{job.size[1]}"


def _effects(job: Job, unused: Sequence[Finding]) -> list[str]:
    lines: list[Any] = []
    for effect, words in (("dropped", "would be dropped"), ("altered", "would not be seen as they are")):
        lines += [f"{int(f.clips.sum()):,} {words}: {f.reason}" for f in unused if f.effect == effect]
    return [*lines, f"they are listed in {job.out / LISTED}"] if lines else []
