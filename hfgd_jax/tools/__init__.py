"""Commands beside the front door, each `python -m hfgd_jax.tools.NAME`; its first lines say what it is for.

Not here: training, evaluation, prediction and export (`hfgd_jax/main.py`). Nothing imports this folder but
itself and `benchmarks/`.
"""
