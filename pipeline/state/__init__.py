"""What a recipe asks for and what is already committed: fingerprints, units of work, rows of earlier builds.

Start at fingerprints.py. May import filters, captioners, selection and below.
"""
