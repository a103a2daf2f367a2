"""Verb phrases of captions for the camera labels of filters.camera."""

from __future__ import annotations

CAMERA = {
    "static": "holds still",
    "pan_left": "pans left",
    "pan_right": "pans right",
    "tilt_up": "tilts up",
    "tilt_down": "tilts down",
    "zoom_in": "zooms in",
    "zoom_out": "zooms out",
    "roll_left": "rolls to the left",
    "roll_right": "rolls to the right",
    "dolly_in": "moves forward",
    "dolly_out": "moves backward",
    "handheld": "is handheld",
}
