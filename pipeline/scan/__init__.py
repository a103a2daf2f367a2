"""The scan worker: one decode of a source yields its shots, cheap scores and sampled frames.

Start at scan.py. May import shots, state and below.
"""
