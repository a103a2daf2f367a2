"""Selection: scores and a recipe in; kept clips and reasons for rejection out. Pure functions over columns.

Start at select.py. May import tables, sources and config.
"""
