"""Runs units of work through stages, on Ray Data, and reports progress.

Start at ray_engine.py. Knows nothing of video; may import state (units) and below.
"""
