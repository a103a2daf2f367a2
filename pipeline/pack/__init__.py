"""The pack worker: kept clips are encoded and written as shards.

Start at shards.py. May import state, selection and below.
"""
