"""Local folders and object stores behind the same few operations, and the lease on a dataset.

Start at store.py. Imports nothing else of pipeline/.
"""
