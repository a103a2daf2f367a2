"""The passes of a build, one file a pass, and the workers of those that read sampled frames.

Start at registry.py, the list that `build` and `plan` go through, then base.py. May import engine, scan, pack and
below.
"""
