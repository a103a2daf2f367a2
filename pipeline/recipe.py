"""The recipe: every option of a build, typed, in one place. A preset or a YAML file, then `key=value` on top."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import importlib.resources
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")  # YAML 1.1 takes 1e-3 for text


class RecipeError(ValueError):
    """A recipe that cannot be used; the message says which key, and what was meant most likely."""


@dataclass(frozen=True)
class SourceOptions:
    """How sources behind http://, https:// and ytdlp: are read; none of it changes what a scan finds."""

    robots: bool = True  # follow robots.txt
    connections: int = 4  # to one host at once, from one machine
    delay: float = 0.0  # seconds between two requests to one host, from one machine; robots.txt may ask for more
    max_gb: float = 20.0  # a larger file is not read
    cache_gb: float = 50.0  # of a machine's temporary folder, for files that cannot be read by ranges


@dataclass(frozen=True)
class ScanOptions:
    shots: str = "cascade"  # cascade, adaptive, transnetv2 or stride
    min_seconds: float = 2.0  # a shorter shot is a row with `rejected_by: duration`
    max_seconds: float = 10.0  # a longer shot is cut into equal parts
    segment_seconds: float = 600.0  # what one unit of work covers
    deadline_factor: float = 4.0  # a decode may take this many times the source's duration ...
    deadline_seconds: float = 120.0  # ... plus this
    memory_mb: int = 3000  # of the child process that decodes
    frames_uniform: int = 4  # sampled frames a clip, evenly spread
    frames_peaks: int = 4  # and at motion peaks
    frame_side: int = 512  # long side of a sampled frame, pixels; never enlarged
    jpeg_quality: int = 92


@dataclass(frozen=True)
class EncoderOptions:
    name: str = "conse"  # conse, or openclip
    model: str = "ViT-L-14"  # openclip: architecture
    pretrained: str = "openai"  # openclip: tag or checkpoint file


@dataclass(frozen=True)
class Bounds:
    """Kept when min <= score <= max (numbers) or when the label is in `any_of` and not in `none_of` (strings)."""

    min: float | None = None
    max: float | None = None
    any_of: tuple[str, ...] | None = None
    none_of: tuple[str, ...] | None = None
    missing: str = "reject"  # what a null score means: reject or keep

    def admit(self, score: object) -> bool:
        """Whether a clip with this score is kept. None and NaN are missing."""
        if score is None or score != score:
            return self.missing == "keep"
        if isinstance(score, str):
            return (self.any_of is None or score in self.any_of) and (self.none_of is None or score not in self.none_of)
        assert isinstance(score, (int, float))
        return (self.min is None or score >= self.min) and (self.max is None or score <= self.max)


@dataclass(frozen=True)
class SelectOptions:
    thresholds: Mapping[str, Bounds] = field(default_factory=dict)  # column -> bounds
    duplicates: bool = True
    duplicate_similarity: float = 0.96  # cosine of mean embeddings, above which perceptual hashes are compared
    duplicate_bits: int = 10  # of 64: perceptual hashes nearer than this are the same picture
    val_fraction: float = 0.05  # of sources, by hash of the source id
    balance_clusters: int = 0  # of embeddings: columns balance_cluster and balance_weight; 0 makes none
    balance_cap: int = 0  # the most clips that a cluster keeps; 0 is no limit


@dataclass(frozen=True)
class CaptionOptions:
    captioner: str = "measured"
    options: Mapping[str, Any] = field(default_factory=dict)  # the captioner's own
    text: str = "dense"  # what .txt holds: short, dense or mix
    batch: int = 16
    audit: bool = True


@dataclass(frozen=True)
class PackOptions:
    codec: str = "h264"  # h264, h265, av1 or copy
    preset: str = "fast_loading"  # fast_loading (a keyframe a second, no B-frames) or small (a keyframe in 250 frames)
    heights: tuple[int, ...] = (1080, 720, 480, 360, 240)  # a clip is scaled down to the nearest, never up
    durations: tuple[float, ...] = ()  # seconds: buckets also by length, as (4, 8) makes them; () makes one
    fps: float | None = None  # constant frame rate; None keeps the source's
    shard_mb: float = 256.0


@dataclass(frozen=True)
class Recipe:
    name: str = "embedded"
    sources: SourceOptions = field(default_factory=SourceOptions)
    scan: ScanOptions = field(default_factory=ScanOptions)
    filters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # name -> its options; cheap before dear
    canaries: bool = False  # plant clips with known defects, to see which filters catch them; they are never shipped
    score_all: bool = False  # run every filter on every clip, also on those that a cheaper one rejects
    encoder: EncoderOptions = field(default_factory=EncoderOptions)
    select: SelectOptions = field(default_factory=SelectOptions)
    caption: CaptionOptions = field(default_factory=CaptionOptions)
    pack: PackOptions = field(default_factory=PackOptions)


def load_recipe(name: str = "embedded", overrides: Sequence[str] = ()) -> Recipe:
    """The recipe called `name` (a preset or a YAML file) with `key=value` overrides such as
    `select.thresholds.motion_object.min=0.01`. Raises RecipeError."""
    tree = yaml.safe_load(_recipe_text(name)) or {}
    if not isinstance(tree, dict):
        raise RecipeError(f"recipe {name!r}: expected keys and values at the top, got {type(tree).__name__}")
    return from_dict(tree, overrides)


def from_dict(given: Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that `to_dict` (or dataset.json) holds, with `key=value` overrides. Raises RecipeError."""
    tree = dict(copy.deepcopy(given))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise RecipeError(f"{override!r}: overrides look like scan.max_seconds=8")
        _set(tree, key.split("."), yaml.safe_load(text))
    return _build(Recipe, tree, "")


def presets() -> list[str]:
    """Names of the recipes that come with clipmill."""
    folder = importlib.resources.files("pipeline") / "recipes"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def to_dict(recipe: Any) -> dict[str, Any]:
    """Plain dicts, lists and scalars, for JSON and for fingerprints."""
    return dataclasses.asdict(recipe)


def _recipe_text(name: str) -> str:
    if name in presets():
        return (importlib.resources.files("pipeline") / "recipes" / f"{name}.yaml").read_text()
    path = Path(name)
    if path.suffix not in (".yaml", ".yml") and not path.exists():
        raise RecipeError(f"no recipe called {name!r}: presets are {', '.join(presets())}, or give a YAML file")
    try:
        return path.read_text()
    except OSError as error:
        raise RecipeError(f"recipe {name!r} cannot be read: {error.strerror}") from error


def _set(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise RecipeError(f"{'.'.join(keys)}: {key} is a value, not a section")
    tree[keys[-1]] = value


def _build(kind: Any, value: Any, path: str) -> Any:
    """`value` as `kind`: a dataclass from a mapping, or a scalar, tuple or mapping checked against its annotation."""
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise RecipeError(f"{path}: expected a section, got {value!r}")
        hints = typing.get_type_hints(kind)
        for key in value:
            if key not in hints:
                near = difflib.get_close_matches(str(key), hints, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(hints)}"
                raise RecipeError(f"unknown key {_join(path, key)!r}{hint}")
        return kind(**{key: _build(hints[key], item, _join(path, key)) for key, item in value.items()})  # type: ignore[operator]
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _build(next(a for a in args if a is not type(None)), value, path)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise RecipeError(f"{path}: expected a list, got {value!r}")
        return tuple(_build(args[0], item, path) for item in value)
    if origin is not None and issubclass(origin, Mapping):
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise RecipeError(f"{path}: expected a section, got {value!r}")
        return {
            str(key): _build(args[1], {} if item is None else item, _join(path, key)) for key, item in value.items()
        }
    return _scalar(kind, value, path)


def _scalar(kind: Any, value: Any, path: str) -> Any:
    if kind is Any:
        return value
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind in (str, bool) and isinstance(value, kind):
        return value
    raise RecipeError(f"{path}: expected {kind.__name__}, got {value!r}")


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
