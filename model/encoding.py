"""encoding.json: what a dataset of latents was made with, which a run on it uses too."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config.options import OptionError as ConfigError
from pipeline.storage.store import Store

# Options of a config that decide what `clipmill encode` writes.
ENCODED = ("latents", "latent_channels", "text", "text_tokens", "resolutions", "frame_counts", "fps", "patch")


@dataclass(frozen=True)
class Encoding:
    """The content of encoding.json."""

    source: str  # the dataset of clips
    encoder: Mapping[str, Any]  # the recipe's encoder that scored the source
    latents: str  # id
    stride: tuple[int, int, int]  # of the latents
    text: str  # id of the captions' encoder
    text_layout: Mapping[str, Sequence[int]]  # shapes of an encoded caption, by name
    options: Mapping[str, Any]  # the config's values of ENCODED
    shards: Mapping[str, int]  # by split
    first_frame: bool = False  # whether samples hold what a base takes of the first frame


def read_encoding(datasets: Sequence[str]) -> Encoding | None:
    """Return the encoding of datasets of latents, which must be alike; None for datasets of clips. Raises
    ConfigError."""
    encodings: list[Encoding | None] = []
    for dataset in datasets:
        store = Store(split_weight(dataset)[0])
        exists = store.exists("encoding.json")
        encodings.append(Encoding(**json.loads(store.read("encoding.json"))) if exists else None)
    distinct = {
        json.dumps([e.latents, e.text, {**e.options, "latents": ""}], sort_keys=True) if e else "" for e in encodings
    }
    if len(distinct) > 1:
        raise ConfigError(f"{' and '.join(datasets)} were not encoded with the same latents, texts and options")
    return encodings[0] if encodings else None


def scored_by(dataset: str) -> dict[str, Any]:
    """Return the encoder in the recipe of a dataset of clips; empty where it has no dataset.json."""
    store = Store(dataset)
    if not store.exists("dataset.json"):
        return {}
    return dict(json.loads(store.read("dataset.json"))["recipe"]["encoder"])


def check_encoding(options: Mapping[str, Any], encoding: Encoding | None) -> None:
    """Raise ConfigError when a run's options ask for other latents, texts or shapes than its datasets hold."""
    encoded = encoding.options if encoding else {}
    if wrong := [f"{key}={encoded[key]}, not {options[key]}" for key in encoded if encoded[key] != options[key]]:
        raise ConfigError(f"the latents were encoded with {', '.join(wrong)}; leave that out, or encode again")


def split_weight(dataset: str) -> tuple[str, float | None]:
    """Split PATH@WEIGHT into its parts."""
    path, at, weight = dataset.rpartition("@")
    try:
        return (path, float(weight)) if at else (dataset, None)
    except ValueError:
        return dataset, None
