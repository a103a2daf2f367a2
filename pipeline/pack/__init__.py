"""The pack workers: encode the kept clips of a shard in parts, and join the parts.

Start at README.md, then shards.py. May import state, selection and packages below them.
"""
