"""The recipe: every option of a build, typed. A preset or a YAML file, then `key=value` overrides."""

from __future__ import annotations

import copy
import dataclasses
import importlib.resources
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.config.options import (
    Amount,
    Count,
    NonNegative,
    Share,
    WholeNumber,
    merged,
    nearest,
    override,
    parse_section,
    typed,
)
from pipeline.config.options import OptionError as RecipeError
from pipeline.config.secrets import IN_URL

RETIRED = frozenset({"canaries"})  # options of earlier versions, which dataset.json of their datasets still holds

Height = Annotated[int, Field(ge=16, le=8640)]  # pixels; encoders take multiples of 16
Heights = Annotated[tuple[Height, ...], Field(min_length=1)]
Quality = Annotated[int, Field(ge=1, le=100)]  # of JPEG
Cosine = Annotated[float, Field(ge=-1, le=1)]
Bits = Annotated[int, Field(ge=0, le=64)]
PROXY = re.compile(r"https?://[^\s/@?#]+/?")


@dataclass(frozen=True)
class SourceOptions:
    """How sources are identified and read; `robots` to `proxy` apply to http://, https:// and ytdlp: only."""

    identity: Literal["whole", "sampled"] = "whole"  # hash all bytes, or the size and 4 MiB of them
    allow_private: bool = False  # read from private network addresses and this machine's own
    archive_members: Count = 1_000_000  # a tar of more files is not read
    robots: bool = True  # follow robots.txt
    connections: Count = 4  # concurrent, to one host from one machine
    delay: NonNegative = 0.0  # seconds between requests to one host from one machine; robots.txt may raise it
    max_gb: Amount = 20.0  # a larger file is not read
    cache_gb: NonNegative = 50.0  # of a machine's temporary folder, for files that cannot be read by ranges
    cookies: str | None = None  # a Netscape cookies.txt, on every machine; yt-dlp's --cookies writes one of a browser
    proxy: str | None = None  # http://HOST:PORT; with a password, set the variable HTTPS_PROXY or HTTP_PROXY instead

    def __post_init__(self) -> None:
        if self.proxy is not None and not PROXY.fullmatch(self.proxy):  # the value may hold a password: not shown
            raise ValueError(
                "proxy: expected http://HOST:PORT or https://HOST:PORT; set the environment variables HTTPS_PROXY and "
                "HTTP_PROXY for a proxy with a password"
            )


@dataclass(frozen=True)
class ScanOptions:
    shots: Literal["cascade", "adaptive", "transnetv2", "stride"] = "cascade"
    min_seconds: NonNegative = 2.0  # a shorter shot is a row with `rejected_by: duration`
    # A longer shot is cut into equal parts, which may be shorter than min_seconds. If both options are equal, it is cut
    # into parts of that length, and the rest of the shot is rejected.
    max_seconds: Amount = 10.0
    segment_seconds: Amount = 600.0  # longer sources are scanned in parts of this length
    deadline_factor: NonNegative = 4.0  # a decode may take this many times the source's duration ...
    deadline_seconds: Amount = 120.0  # ... plus this
    memory_mb: Count = 3000  # of the child process that decodes
    max_gb: Amount = 1000.0  # a larger source is not read
    max_streams: Count = 64  # of any type; a source with more is not scanned
    max_gigapixels: Amount = 2000.0  # decoded of one segment; a segment with more is not used
    frames_uniform: Count = 4  # sampled frames a clip, evenly spread
    frames_peaks: WholeNumber = 4  # sampled frames a clip at motion peaks, besides
    frame_side: Count = 512  # long side of a sampled frame, pixels; never enlarged
    jpeg_quality: Quality = 92

    def __post_init__(self) -> None:
        if self.min_seconds > self.max_seconds:
            raise ValueError(f"min_seconds={self.min_seconds:g} is above max_seconds={self.max_seconds:g}")


@dataclass(frozen=True)
class EncoderOptions:
    name: Literal["conse", "openclip"] = "conse"
    model: str = "ViT-L-14"  # openclip: architecture
    pretrained: str = "openai"  # openclip: tag or checkpoint file


@dataclass(frozen=True)
class Bounds:
    """Kept when min <= score <= max (numbers) or when the label is in `any_of` and not in `none_of` (strings)."""

    min: float | None = None
    max: float | None = None
    any_of: tuple[str, ...] | None = None
    none_of: tuple[str, ...] | None = None
    missing: Literal["reject", "keep"] = "reject"  # whether a null score rejects the clip

    def admit(self, score: object) -> bool:
        """Return whether a clip with this score is kept. None and NaN are missing."""
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
    duplicate_similarity: Cosine = 0.96  # of mean embeddings, above which perceptual hashes are compared
    duplicate_bits: Bits = 10  # of 64: perceptual hashes nearer than this are the same picture
    val_fraction: Share = 0.05  # of sources, by hash of the source id
    balance_clusters: WholeNumber = 0  # of embeddings: columns balance_cluster and balance_weight; 0 makes none
    balance_cap: WholeNumber = 0  # the most clips that a cluster keeps; 0 is no limit


@dataclass(frozen=True)
class CaptionOptions:
    captioner: str = "measured"
    options: Mapping[str, Any] = field(default_factory=dict)  # the captioner's own
    text: Literal["short", "dense", "mix"] = "dense"  # what .txt holds
    instruction: str | None = None  # replaces the default task of the prompt, not the answer format
    language: str = "English"  # of the captions; claims are audited in English only
    prefix: str = ""  # put before every caption with a space: a trigger word
    suffix: str = ""  # put after every caption with a space
    batch: Count = 64  # clips that are captioned and committed together
    audit: bool = True


@dataclass(frozen=True)
class FrameOptions:
    """A frame contract: a clip is packed with k * multiple + extra + spare frames, for the largest k that fits."""

    multiple: Count = 1
    extra: int = 1
    spare: int = 1  # trainers that convert the rate again may lose a frame to rounding


@dataclass(frozen=True)
class PackOptions:
    codec: Literal["h264", "h265", "av1"] = "h264"
    preset: Literal["fast_loading", "small"] = "fast_loading"  # a keyframe in 24 frames, or in 250
    heights: Heights = (1080, 720, 480, 360, 240)  # a clip is scaled down to the nearest, never up
    durations: tuple[Amount, ...] = ()  # seconds: edges of buckets by length; (4, 8) makes three, () one
    fps: Amount | None = None  # constant frame rate; None keeps the source's
    frames: FrameOptions | None = None  # with fps: the allowed numbers of frames; None allows any
    model: str | None = None  # sets fps and frames to what this video model is trained at: wan2.1, ltx, hunyuan ...
    hdr: Literal["tonemap", "reject"] = "tonemap"  # PQ and HLG sources: convert clips to BT.709, or reject them
    audio: Literal["drop", "keep"] = "drop"  # keep: the clip's sound, as AAC in its mp4
    companions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # first_last, canny, depth -> its options
    shard_mb: Amount = 256.0


@dataclass(frozen=True)
class Recipe:
    name: str = "embedded"
    sources: SourceOptions = field(default_factory=SourceOptions)
    scan: ScanOptions = field(default_factory=ScanOptions)
    filters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # options by name, cheap ones first
    score_all: bool = False  # run every filter on every clip, also on those that a cheaper one rejects
    encoder: EncoderOptions = field(default_factory=EncoderOptions)
    select: SelectOptions = field(default_factory=SelectOptions)
    caption: CaptionOptions = field(default_factory=CaptionOptions)
    pack: PackOptions = field(default_factory=PackOptions)


def load_recipe(name: str = "embedded", overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe called `name` (a preset or a YAML file) with `key=value` overrides such as
    `select.thresholds.motion_object.min=0.01`. Raises RecipeError."""
    recipe = from_dict(_recipe_tree(name), overrides)
    for column, bounds in recipe.select.thresholds.items():
        if bounds.min is not None and bounds.max is not None and bounds.min > bounds.max:
            raise RecipeError(f"select.thresholds.{column}: min={bounds.min:g} is above max={bounds.max:g}")
    return recipe


def from_dict(given: Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a dict made by `to_dict` (as in dataset.json), with overrides. Raises RecipeError."""
    tree = {key: value for key, value in copy.deepcopy(dict(given)).items() if key not in RETIRED}
    override(tree, overrides)
    _refuse_secrets(tree, "")
    return typed(Recipe, tree)


def _refuse_secrets(value: Any, path: str) -> None:
    """Raise RecipeError for a URL with credentials in any option: the recipe is written to dataset.json."""
    if isinstance(value, str) and IN_URL.search(value):
        raise RecipeError(f"{path}: credentials in a URL end up in dataset.json: put them into the environment instead")
    items = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    )
    for key, item in items:
        _refuse_secrets(item, f"{path}.{key}" if path else str(key))


def presets() -> list[str]:
    """Return the names of the recipes that clipmill contains."""
    folder = importlib.resources.files("pipeline.config") / "recipes"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def to_dict(recipe: Any) -> dict[str, Any]:
    """Convert a recipe to dicts, lists and scalars, for JSON and for fingerprints."""
    return dataclasses.asdict(recipe)


def _recipe_tree(name: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the options of a recipe on top of those of the recipe that its key `extends` names."""
    tree = parse_section(_recipe_text(name), f"recipe {name!r}")
    base = tree.pop("extends", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise RecipeError(f"recipe {name!r}: extends: expected the name of a recipe, got {base!r}")
    if Path(base).suffix in (".yaml", ".yml"):
        base = str(Path(name).parent / base)
    if base in (*above, name):
        raise RecipeError(f"recipe {name!r}: {' extends '.join((*above, name, base))}")
    return merged(_recipe_tree(base, (*above, name)), tree)


def _recipe_text(name: str) -> str:
    if name in presets():
        return (importlib.resources.files("pipeline.config") / "recipes" / f"{name}.yaml").read_text()
    path = Path(name)
    if path.suffix not in (".yaml", ".yml") and not path.exists():
        raise RecipeError(f"no recipe and no YAML file is called {name!r}{nearest(name, presets())}")
    try:
        return path.read_text()
    except OSError as error:
        raise RecipeError(f"recipe {name!r} cannot be read: {error.strerror}") from error
