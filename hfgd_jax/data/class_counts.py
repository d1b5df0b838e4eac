"""Counts the pixels of each class in a split."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int64

from hfgd_jax.data.builders import parallel
from hfgd_jax.data.prepared import CorruptRecordError, Split
from hfgd_jax.errors import UserError


def class_counts(
    split: Split, *, skip_corrupt: bool = False, report: Callable[[str], None] | None = None
) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " k"]]:
    """Reads every label of a split once, and no image.

    Whole numbers: the same for every process and number of threads.

    Args:
        split: a labelled split.
        skip_corrupt: leave unreadable records out instead of raising.
        report: called with a line that ends in `done/total` after each record.

    Returns:
        The pixels of each class, and for each class the labelled pixels of all images in which it occurs.

    Raises:
        UserError: the split has no labels. CorruptRecordError: a label cannot be read.
    """
    if not split.labelled:
        raise UserError(f"data set {split.dataset!r}: split {split.split!r} has no labels to count")
    classes = split.table.num_classes

    def count(index: int) -> np.ndarray:
        try:
            label = split.label(index)
        except CorruptRecordError:
            if not skip_corrupt:
                raise
            return np.zeros(classes, np.int64)
        return np.bincount(label.ravel(), minlength=256)[:classes]

    pixels, beside = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    for done, found in enumerate(parallel.ordered_map(count, range(len(split))), start=1):
        pixels += found
        beside += np.where(found > 0, found.sum(), 0)
        if report:
            report(f"counting the pixels of each class: {done}/{len(split)}")
    return pixels, beside
