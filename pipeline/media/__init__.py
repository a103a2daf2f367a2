"""Decoding and encoding: the only code that touches PyAV, and the sandbox that runs it.

Start at video.py. May import storage and config.
"""
