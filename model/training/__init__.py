"""The parts of a training run that are not the model: optimiser, checkpoints, sharding, memory, log. Start at
`parallel.py`; model/train.py puts them together.

May import: model.config, model.errors, model.backbones, model.network, pipeline.storage.
"""
