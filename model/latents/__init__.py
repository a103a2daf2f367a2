"""Latents: what the diffusion model works on instead of pixels. Start at `base.py` (the interface), then `settle.py`.

May import: model.config, model.data, model.backbones, model.training.parallel, pipeline.storage. `hub.py` alone uses
diffusers.
"""
