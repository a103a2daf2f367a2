"""Decoding and encoding: the only code that touches PyAV. `isolation/` has the child processes that run it.

Start at video.py. May import storage and config.
"""
