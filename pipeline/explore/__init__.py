"""The explorer: a server on loopback that shows all clips of a dataset and records manual decisions.

Start at app.py. May import every package below the command line except pipeline.builds.
"""
