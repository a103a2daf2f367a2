"""Text of captions: the prompt, reading answers, and the checks of a caption against its clip.

Start at prompt.py and audit.py. Imports nothing else of captioners/ but base.
"""
