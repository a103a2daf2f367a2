"""Data: from shards to micro-batches. Start at `schedule.py` (which samples make up a step), then `index.py` (what the
shards hold) and `loader.py` (bytes, decoding, worker processes).

May import: model.config, model.errors, pipeline (storage, media).
"""
