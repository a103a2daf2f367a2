"""LoRA by peft: low-rank adapters beside frozen linear layers (Hu et al., 2021), saved as diffusers loads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.errors import BaseError

FILE = "pytorch_lora_weights.safetensors"
ADAPTER = "default"


def add_lora(transformer: Any, rank: int, alpha: float, dropout: float, targets: Sequence[str]) -> None:
    """Freeze the transformer and add adapters, in place; B is zero, so that nothing changes at first. The adapters are
    fp32 whatever the precision of the base. Raises BaseError when no layer is called so."""
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise BaseError("LoRA needs peft: pip install 'clipmill[diffusers]'") from error
    transformer.requires_grad_(False)
    linear = [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            raise BaseError(f"lora_targets: no linear layer of {type(transformer).__name__} is called {target!r}")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft takes fractions too
        lora_dropout=dropout,
        target_modules=list(targets),
        init_lora_weights=True,
    )
    transformer.add_adapter(config, adapter_name=ADAPTER)
    for module in list(transformer.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.requires_grad:
                module.register_parameter(name, torch.nn.Parameter(parameter.detach().float()))


def use_autocast(transformer: Any) -> None:
    """Leave the precision of the adapters to autocast; peft would first copy every input to fp32."""
    for module in transformer.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False


def lora_file(weights: Mapping[str, Tensor], rank: int, alpha: float, folder: Path) -> Path:
    """Write adapters, by the names of a backbone's parameters, as FILE for `pipeline.load_lora_weights(folder)`, and
    return the file. The factor alpha / rank is multiplied into B, so that every program that
    reads the file applies the same update without an alpha."""
    tensors = {}
    for name, tensor in weights.items():
        scaled = tensor * (alpha / rank) if ".lora_B." in name else tensor
        tensors[name.replace(f".{ADAPTER}.", ".")] = scaled.contiguous()
    save_file(tensors, folder / FILE, metadata={"format": "pt"})
    return folder / FILE


def merge_lora(transformer: Any) -> None:
    """Add the adapters' updates to the base weights, in place, and remove the adapters."""
    transformer.fuse_lora()
    transformer.unload_lora()
