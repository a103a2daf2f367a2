"""The `measured` captioner: sentences from measurements and ImageNet tags, without a model.

May import captioners.text.
"""
