"""Exports: a finished dataset in the layout that a trainer or a library reads, with a configuration that runs.

Start at export.py; reader.py reads a dataset, layout.py writes files, usability.py says which clips a trainer would
drop, formats/ has one function an exporter. May import dataset and below; nothing but the command line imports it.
"""
