"""Encoders of frames and texts: the Protocol, the embedded ConSE encoder and OpenCLIP.

Start at base.py. Filters import from here, never the other way.
"""
