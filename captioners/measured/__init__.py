"""The `measured` captioner: composes sentences from scores and ImageNet tags, without a language model.

May import captioners.text.
"""
