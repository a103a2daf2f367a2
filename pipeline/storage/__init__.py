"""Local folders and object stores behind the same few operations, and the lease on a dataset.

Start at store.py. Of pipeline/ it imports only config/secrets.py.
"""
