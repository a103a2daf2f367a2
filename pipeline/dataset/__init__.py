"""The dataset folder as a whole: lock, final tables, dataset.json, card, verification, export.

Start at finish.py. May import passes and below.
"""
