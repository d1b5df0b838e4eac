"""A checkpoint as a bundle: parameters, a StableHLO program, and a loader that needs jax and numpy alone.

Not here: weight files for other libraries (`weights/`).
"""
