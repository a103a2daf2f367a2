"""The passes of a build, one file for each, and the workers of the passes that read sampled frames.

Start at registry.py, which lists the passes that `build` and `plan` iterate over, then base.py. May import engine,
scan, pack and packages below them.
"""
