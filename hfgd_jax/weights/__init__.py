"""Other projects' weights, in and out: where they are, file formats, names and layouts of their tensors.

Not here: the networks (`models/`) and our own checkpoints (`runs/`).
"""
