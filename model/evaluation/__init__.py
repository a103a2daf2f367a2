"""Measures of videos and the page that shows them; model/evaluate.py uses both. Start at `measures.py`.

May import: model.errors, filters.encoders, pipeline.media.
"""
