"""The recipe: every option of a build, its presets, and how options are parsed.

Start at recipe.py. Imports nothing else of pipeline/.
"""
