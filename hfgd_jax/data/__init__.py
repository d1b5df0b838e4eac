"""Data sets: prepared on disk (`builders/`), read (`prepared`), augmented and batched (`pipeline`).

Not here: models (class counts and mean pixels are arguments), and batches on devices (`runtime/sharding.py`).
"""
