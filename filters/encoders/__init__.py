"""Encoders of frames and texts: the Protocol, the embedded ConSE encoder and OpenCLIP.

Start at base.py. Filters import this package; it imports no filters.
"""
