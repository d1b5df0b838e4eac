"""Prepares data sets from raw folders: a file for each, their list (`registry.py`), and `preparation.py`.

A new data set is one file here, one line in `BUILDERS`, and its table in `labels.TABLES`. Not here: reading
prepared data sets (`hfgd_jax/data/prepared.py`).
"""

from hfgd_jax.data.builders.preparation import is_prepared, prepare, prepare_if_missing
from hfgd_jax.data.builders.registry import (
    BUILDERS,
    EMBEDDED,
    get,
    raw_splits,
    source_folder,
    wrong_counts,
)

__all__ = [
    "BUILDERS",
    "EMBEDDED",
    "get",
    "is_prepared",
    "prepare",
    "prepare_if_missing",
    "raw_splits",
    "source_folder",
    "wrong_counts",
]
