"""Shot detection: detectors, cutting shots into clips, boundaries of transitions, trained weights.

Start at detectors.py. May import media, tables and config.
"""
