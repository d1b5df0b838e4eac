"""From images to logits, masks and overlays: scales, mirror images, sliding windows, tiles of large images.

Not here: scores (`evaluation/`) and the commands' flags.
"""
