"""Schemas of tables, fragments (committed units of rows) and their compaction.

Start at fragments.py. May import storage and config.
"""
