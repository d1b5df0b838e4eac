"""The paper's figures of trained runs: computations, and `draw.py`, which draws (docs/figures.md)."""
