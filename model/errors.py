"""The trainer's own errors: each ends a command with one line and status 2 (see model/cli.py), not with a traceback."""

from __future__ import annotations


class DataError(ValueError):
    """A dataset that cannot be trained on; the message says what is missing."""


class LatentError(ValueError):
    """Latents that do not fit: other latents than the run's, or a shape that cannot be encoded."""


class TextError(ValueError):
    """A text encoder that cannot be loaded; the message says what to do."""


class BaseError(ValueError):
    """A diffusers model that cannot be trained on top of; the message says why."""


class DeviceError(ValueError):
    """A device that cannot hold a run; the message says what to change."""


class CheckpointError(ValueError):
    """No checkpoint, or one that does not fit; the message says what to do."""


class MeasureError(ValueError):
    """A network that cannot be used for measuring; the message says why."""
