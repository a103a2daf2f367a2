"""Scans and embeds labelled footage without Ray, and keeps what comes out for the next run.

A result is kept under a hash of what it is made from: the file's bytes, the recipe's options and the code that runs. So
another threshold costs nothing, and another version of a filter runs that filter alone.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import json
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from captioners import load_captioner
from captioners.base import Caption, ClipFrames
from captioners.text.audit import audit
from filters import FILTERS
from filters.base import Filter, Track, score
from filters.encoders.base import load_encoder
from pipeline.config.recipe import Recipe, to_dict
from pipeline.media.video import MediaError, probe
from pipeline.passes.embed_worker import Frames, clip_view, limit_threads
from pipeline.scan.scan import scan
from pipeline.selection.duplicates import frame_hashes
from pipeline.sources.discover import Source
from pipeline.state.fingerprints import captioner_options, filters_of

ROOT = Path(__file__).parents[3]
SCAN_CODE = ("pipeline/scan", "pipeline/shots", "pipeline/media")


@dataclass(frozen=True)
class ScannedFile:
    """What the passes give for one file: rows of clips with every score of scan and embed and the audited `caption`,
    the time of the first frame in seconds, and why nothing could be used."""

    name: str
    clips: list[dict[str, Any]]
    start: float
    end: float
    error: str | None = None


def scanned_file(root: Path, name: str, recipe: Recipe, cache: Path) -> ScannedFile:
    """Return the clips of a file below `root`, every one of them with the scores of every filter."""
    limit_threads()
    path = root / name
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    key = _hash(content, to_dict(recipe.scan), dict(recipe.filters), _scan_code())
    try:
        start, end, clips, frames = _kept(cache / "scan" / key, lambda: _scan(path, content, recipe))
    except MediaError as error:
        return ScannedFile(name, [], 0.0, 0.0, str(error))
    for clip in clips:
        if clip["dropped"] is None:
            pictures = frames.get(clip["clip_id"], [])
            clip.update(_embedded(clip, pictures, recipe, cache))
            clip["caption"] = _captioned(clip, pictures, recipe, cache)
    return ScannedFile(name, clips, start, end)


def looks(root: Path, name: str, recipe: Recipe, cache: Path) -> dict[str, dict[str, Any]]:
    """Return `phash` and `embedding` of the clips of a file, by clip_id, as the embed pass writes them."""
    path = root / name
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    key = _hash(content, to_dict(recipe.scan), dict(recipe.filters), _scan_code())
    _, _, _, frames = _kept(cache / "scan" / key, lambda: _scan(path, content, recipe))
    columns = {}
    for clip_id, of_clip in frames.items():
        pictures = _decoded(of_clip).pictures
        jpegs = _hash(*(hashlib.sha256(frame["jpeg"]).hexdigest() for frame in of_clip))
        encoded = cache / "embed" / _hash(jpegs, to_dict(recipe.encoder), _bytes("filters/encoders"))
        _, appearance, _ = _kept(encoded, lambda pictures=pictures: tuple(_encoder(recipe).look(pictures)))
        mean = appearance.mean(axis=0)
        embedding = (mean / max(float(np.linalg.norm(mean)), 1e-9)).astype(np.float32)
        columns[clip_id] = {"phash": frame_hashes(pictures), "embedding": embedding.tolist()}
    return columns


def _scan(path: Path, content: str, recipe: Recipe) -> tuple[float, float, list[dict[str, Any]], dict[str, Any]]:
    result = scan(Source(content[:32], str(path)), recipe)
    frames: dict[str, list[dict[str, Any]]] = {}
    for frame in result.frames:
        frames.setdefault(frame["clip_id"], []).append(frame)
    info = probe(str(path))
    end = info.start + info.duration
    if result.missing and result.clips:  # the file holds less than its header says
        end = result.clips[-1]["end"]
    return info.start, end, result.clips, frames


def _embedded(clip: Mapping[str, Any], frames: list[dict[str, Any]], recipe: Recipe, cache: Path) -> dict[str, Any]:
    """The scores of the embed pass: each filter's, kept by itself."""
    content = _hash(*(hashlib.sha256(frame["jpeg"]).hexdigest() for frame in frames))
    pictures = functools.cache(lambda: _decoded(frames))
    encoded = functools.cache(
        lambda: _kept(
            cache / "embed" / _hash(content, to_dict(recipe.encoder), _bytes("filters/encoders")),
            lambda: tuple(_encoder(recipe).look(pictures().pictures)) if frames else None,
        )
    )
    scores: dict[str, Any] = {}
    for name, clip_filter in _filters(recipe).items():
        options = [content, name, clip_filter.version, recipe.filters[name], _bytes(_module(name))]
        needs_encoder = Track.EMBEDDING in clip_filter.needs or name == "tags"
        if needs_encoder:
            options += [to_dict(recipe.encoder), _bytes("filters/encoders")]

        def answer(clip_filter: Filter = clip_filter, needs_encoder: bool = needs_encoder) -> dict[str, Any]:
            tracks = {}
            if needs_encoder and encoded():
                tracks = dict(zip(("embedding", "appearance", "tags"), encoded(), strict=True))
            return score(clip_filter, [clip_view(clip, pictures(), clip, **tracks)])[0]

        scores.update(_kept(cache / "embed" / _hash(*options), answer))
    return scores


def _captioned(clip: Mapping[str, Any], frames: list[dict[str, Any]], recipe: Recipe, cache: Path) -> Caption | None:
    """The audited caption of a clip; None where it cannot be used."""
    content = _hash(*(hashlib.sha256(frame["jpeg"]).hexdigest() for frame in frames))
    code = [_bytes(f"captioners/{name}") for name in (recipe.caption.captioner, "text", "base.py")]

    def answer() -> Caption | None:
        pictures = _decoded(frames)
        times = pictures.times - clip["start"]
        view = ClipFrames(clip["clip_id"], clip["end"] - clip["start"], pictures.pictures, times, clip)
        caption = load_captioner(recipe.caption.captioner, captioner_options(recipe)).caption([view])[0]
        return audit(caption, view).caption if isinstance(caption, Caption) else None

    caption: Caption | None = _kept(cache / "caption" / _hash(content, clip, to_dict(recipe.caption), code), answer)
    return caption


def _decoded(frames: Iterable[Mapping[str, Any]]) -> Frames:
    ordered = sorted(frames, key=lambda frame: frame["index"])
    pictures = []
    for frame in ordered:
        picture = cv2.imdecode(np.frombuffer(frame["jpeg"], np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None
        pictures.append(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
    return Frames(pictures, np.array([frame["time"] for frame in ordered]))


_loaded: dict[str, Any] = {}  # the encoder and the filters of this process, which load their models once


def _encoder(recipe: Recipe) -> Any:
    key = _hash(to_dict(recipe.encoder))
    if key not in _loaded:
        _loaded[key] = load_encoder(**dataclasses.asdict(recipe.encoder))
    return _loaded[key]


def _filters(recipe: Recipe) -> dict[str, Filter]:
    key = _hash(dict(recipe.filters))
    if key not in _loaded:
        _loaded[key] = filters_of(recipe, "embed", _encoder(recipe))
    filters: dict[str, Filter] = _loaded[key]
    return filters


def _scan_code() -> str:
    """A hash of the code that a scan runs: its packages, and the filters that need no sampled frames."""
    embed_only = {_module(name) for name in FILTERS if name not in _scan_filters()}
    files = [path for folder in SCAN_CODE for path in sorted((ROOT / folder).rglob("*.[pn][yp]*"))]
    files += [
        path
        for path in sorted((ROOT / "filters").rglob("*.[pn][yp]*"))
        if path.relative_to(ROOT).as_posix() not in embed_only and path.parent.name != "encoders"
    ]
    return _hash(*(hashlib.sha256(path.read_bytes()).hexdigest() for path in files if "__pycache__" not in path.parts))


@functools.cache
def _scan_filters() -> frozenset[str]:
    scan_tracks = {Track.LUMA, Track.FLOW, Track.BURST, Track.FIELDS, Track.DETAIL}
    classes = {name: _class(name) for name in FILTERS}
    return frozenset(name for name, filter_class in classes.items() if filter_class.needs <= scan_tracks)


def _class(name: str) -> Any:
    module, _, attribute = FILTERS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def _module(name: str) -> str:
    return FILTERS[name].partition(":")[0].replace(".", "/") + ".py"


@functools.cache
def _bytes(place: str) -> str:
    """A hash of a file, or of the Python files of a folder, below the repository's root."""
    path = ROOT / place
    files = sorted(path.glob("*.py")) if path.is_dir() else [path]
    return _hash(*(hashlib.sha256(file.read_bytes()).hexdigest() for file in files))


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _kept(path: Path, make: Callable[[], Any]) -> Any:
    """What `make` made when it was first called for this path."""
    file = path.with_suffix(".pickle")
    if file.exists():
        return pickle.loads(file.read_bytes())
    value = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{id(value)}.part")
    partial.write_bytes(pickle.dumps(value))
    partial.replace(file)
    return value
