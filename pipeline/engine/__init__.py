"""Runs units of work through stages: in threads of this process, or on Ray Data.

Start at base.py: what an engine is. local.py and ray_engine.py are two, choice.py takes one. Knows nothing of video;
may import state (units) and below.
"""
