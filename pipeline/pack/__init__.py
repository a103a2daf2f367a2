"""The pack workers: kept clips are encoded in parts of a shard, and the parts are joined.

Start at README.md, then shards.py. May import state, selection and below.
"""
