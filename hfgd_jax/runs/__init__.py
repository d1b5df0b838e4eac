"""A run and its run directory: what a config is built into, the optimizer, checkpoints, logs.

Not here: the training loop (`training/`).
"""
