"""What the commands share: the errors that end them with one line, and datasets, `key=value` options and --out."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from model.errors import BaseError, CheckpointError, DataError, DeviceError, LatentError, MeasureError, TextError
from pipeline.config.options import OptionError
from pipeline.storage.store import StorageError

ERRORS = (
    OptionError, DataError, LatentError, TextError, BaseError, CheckpointError, DeviceError, MeasureError, StorageError,
)  # fmt: skip
OPTION = re.compile(r"\w+=")  # key=value, and no path or URL


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command that makes something of datasets. The namespace has data, out, config (a file's name or None),
    preset (a name or None), options ("key=value") and cuda: whether there is a GPU to use."""
    help_ = "folder or URL of a dataset, or DATASET@WEIGHT; options of model/config.py, e.g. steps=1000"
    parser.add_argument("words", nargs="+", metavar="DATASET | key=value", help=help_)
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="folder to write, e.g. runs/first")
    parser.add_argument("--config", metavar="FILE", help="YAML file of options")
    parser.add_argument("--preset", metavar="NAME", help="options of model/presets.py, e.g. wan2.1-1.3b-lora")
    args = parser.parse_intermixed_args(argv)
    args.options = [word for word in args.words if OPTION.match(word)]
    args.data = [word for word in args.words if not OPTION.match(word)]
    if not args.data:
        parser.error("name a dataset")
    args.cuda = torch.cuda.is_available() and "device=cpu" not in args.options
    return args
