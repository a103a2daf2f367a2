"""The layouts: each function writes one trainer's or library's and returns what to do next.

Start at folders.py. May import the files of pipeline.export beside export.py.
"""
