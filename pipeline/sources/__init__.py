"""Sources: discovery, lists and archives, HTTP, downloads.

Start at discover.py. May import media, storage and config.
"""
