"""The data pipeline: from sources to a dataset of clips with scores, captions and shards.

Start at build.py: one build from top to bottom. Imports point down this list only: report, dataset, passes,
engine, scan and pack, shots, state, selection, tables, sources, media, storage, config.
"""
