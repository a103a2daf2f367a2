"""The `vlm` captioner: a video-language model of transformers in this process.

Start at vlm.py. May import captioners.text.
"""
