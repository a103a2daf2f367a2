"""The explorer: a server on loopback that shows all clips of a dataset, and takes decisions by hand.

Start at app.py. May import everything below the command line but builds.
"""
