"""Weights: files named by a recipe, local or on the Hugging Face hub, and files in an installed package."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any


def weights_file(name: str, key: str) -> Path:
    """Return the file of `name`: a path, or "hf://OWNER/REPOSITORY/FILE", which is downloaded once and cached. `key` is
    the option's name, for the message. Raises ValueError if there is no such file."""
    if name.startswith("hf://"):
        owner, repository, file = [*name.removeprefix("hf://").split("/", 2), "", ""][:3]
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        try:
            cached = try_to_load_from_cache(f"{owner}/{repository}", file)
            return Path(cached if isinstance(cached, str) else hf_hub_download(f"{owner}/{repository}", file))
        except Exception as error:  # of many types: no network, no such file, no access
            raise ValueError(f"{key}: {name} could not be downloaded ({error}); give the path of a file") from error
    if not Path(name).is_file():
        raise ValueError(f"{key}: there is no file {name!r}; give a path, or hf://OWNER/REPOSITORY/FILE")
    return Path(name)


def package_folder(name: str) -> Path:
    """Return the folder of a package without importing it. Raises RuntimeError if it is not installed."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(f"the package {name} is not installed")
    return Path(spec.submodule_search_locations[0])


def onnx_session(network: Path | bytes) -> Any:
    """Load an ONNX network, a file or its content, on one CPU thread."""
    # From version 1.29 on, onnxruntime reports its use, with hashes of the networks, to its maker unless this is set.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime  # not at import: most importers only read the filters' columns

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    content = network if isinstance(network, bytes) else str(network)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def load_state(path: Path, key: str) -> dict[str, Any]:
    """Load the state dict of a torch file as float32 tensors on the CPU. Raises ValueError for anything else."""
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name: value.float() for name, value in state.items()}
    except Exception as error:  # a damaged or foreign file raises almost anything
        raise ValueError(f"{key}: {path} holds no weights of torch ({error})") from error
