"""The filters by name. Adding one is a file in one of the folders, a line here and in the recipe;
README.md has a table of the folders and one of the scores.

Start at base.py, the interface of a filter. May import: pipeline.media, pipeline.storage, pipeline.config.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Mapping

from filters.base import Filter
from pipeline.config.options import check_arguments

FILTERS: dict[str, str] = {
    "aesthetics": "filters.content.aesthetics:Aesthetics",
    "blockiness": "filters.picture.blockiness:Blockiness",
    "borders": "filters.overlays.borders:Borders",
    "camera": "filters.movement.camera:Camera",
    "colour": "filters.picture.colour:Colour",
    "concepts": "filters.content.concepts:Concepts",
    "consistency": "filters.content.consistency:Consistency",
    "duration": "filters.duration:Duration",
    "exposure": "filters.picture.exposure:Exposure",
    "faces": "filters.content.faces:Faces",
    "flicker": "filters.picture.flicker:Flicker",
    "frozen": "filters.movement.frozen:Frozen",
    "interlacing": "filters.picture.interlacing:Interlacing",
    "logo": "filters.overlays.logo:Logo",
    "marks": "filters.overlays.marks:Marks",
    "motion": "filters.movement.motion:Motion",
    "naturalness": "filters.picture.naturalness:Naturalness",
    "noise": "filters.picture.noise:Noise",
    "nsfw": "filters.content.nsfw:Nsfw",
    "objects": "filters.content.objects:Objects",
    "reference": "filters.content.reference:Reference",
    "resolution": "filters.resolution:Resolution",
    "safety": "filters.content.safety:Safety",
    "sharpness": "filters.picture.sharpness:Sharpness",
    "similarity": "filters.content.similarity:Similarity",
    "tags": "filters.content.tags:Tags",
    "text": "filters.overlays.text:Text",
    "watermark": "filters.overlays.watermark:Watermark",
}


def filter_of(column: str) -> str:
    """Return the name of the filter that a score column belongs to, or ""."""
    return max((name for name in FILTERS if f"{column}_".startswith(f"{name}_")), key=len, default="")


def load_filter(name: str, options: Mapping[str, object] | None = None, encoder: object = None) -> Filter:
    """Construct the filter called `name` with `options`, and with `encoder` if its constructor has that parameter.
    Raises KeyError for an unknown name, OptionError for an option that the filter does not have or of another type."""
    filter_class = pkgutil.resolve_name(FILTERS[name])
    arguments = {"encoder": encoder} if "encoder" in inspect.signature(filter_class).parameters else {}
    check_arguments(filter_class, options or {}, f"filters.{name}", supplied=arguments)
    clip_filter: Filter = filter_class(**arguments, **(options or {}))
    return clip_filter
