"""One file an exporter: each says how a trainer reads clips and writes its layout.

Start at musubi.py. May import the files of pipeline.export beside export.py.
"""
