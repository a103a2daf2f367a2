"""Backbones: what predicts the target of the objective from noisy latents, times and words. Our own transformer is in
model/network; this package adapts the models of diffusers, full or with LoRA by peft.

Start at `base.py` (the interface), then `families/wan.py` (one family of models) and `adapter.py` (what the families
share). `lora.py` adds, saves and loads adapters, and `quantise.py` holds the weights beside them in fewer bits.

May import: model.errors, model.network, model.objective and filters.torchvision_ops; no other part of the project, so
that a GPU benchmark can use it without Ray or PyAV.
"""
