"""Other projects' weights, in and out: where they are, file formats, and whose names the tensors have.

Not here: the networks (`models/`) and our own checkpoints (`runs/`).
"""
