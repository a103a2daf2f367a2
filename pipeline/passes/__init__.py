"""The passes of a build: which units are pending, and the workers of the embed and caption passes.

Start at pending.py. May import engine, scan, pack and below.
"""
