"""Data sets: prepared once on disk (`builders`), read (`source`), augmented and batched (`pipeline`)."""
