"""The filters by name. Adding one is a file in this folder, a line here and in the recipe; see the end of README.md."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping

from filters.base import Filter

FILTERS: dict[str, str] = {
    "aesthetics": "filters.aesthetics:Aesthetics",
    "blockiness": "filters.blockiness:Blockiness",
    "borders": "filters.borders:Borders",
    "camera": "filters.camera:Camera",
    "colour": "filters.colour:Colour",
    "concepts": "filters.concepts:Concepts",
    "consistency": "filters.consistency:Consistency",
    "duration": "filters.duration:Duration",
    "exposure": "filters.exposure:Exposure",
    "faces": "filters.faces:Faces",
    "flicker": "filters.flicker:Flicker",
    "frozen": "filters.frozen:Frozen",
    "interlacing": "filters.interlacing:Interlacing",
    "logo": "filters.logo:Logo",
    "motion": "filters.motion:Motion",
    "naturalness": "filters.naturalness:Naturalness",
    "noise": "filters.noise:Noise",
    "nsfw": "filters.nsfw:Nsfw",
    "reference": "filters.reference:Reference",
    "resolution": "filters.resolution:Resolution",
    "safety": "filters.safety:Safety",
    "sharpness": "filters.sharpness:Sharpness",
    "similarity": "filters.similarity:Similarity",
    "tags": "filters.tags:Tags",
    "text": "filters.text:Text",
    "watermark": "filters.watermark:Watermark",
}


def load_filter(name: str, options: Mapping[str, object] | None = None, encoder: object = None) -> Filter:
    """Construct the filter called `name` with `options`, and with `encoder` if its constructor has that parameter.
    Raises KeyError for an unknown name, TypeError for an option that the filter does not have."""
    module, _, attribute = FILTERS[name].partition(":")
    filter_class = getattr(importlib.import_module(module), attribute)
    arguments = dict(options or {})
    parameters = inspect.signature(filter_class).parameters
    names = [parameter for parameter in parameters if parameter != "encoder"]
    if unknown := [option for option in arguments if option not in names]:
        raise TypeError(f"the filter {name} has no option {unknown[0]!r}: it has {', '.join(names) or 'none'}")
    if "encoder" in parameters:
        arguments["encoder"] = encoder
    return filter_class(**arguments)
