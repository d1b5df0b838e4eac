"""Recognises a data set by the names of its classes, in the spellings and the orders that projects use."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from hfgd_jax.data.label_tables import pascal_context
from hfgd_jax.data.labels import IGNORE, TABLES, LabelTable

_ALIKE = 0.95  # share of names at the same places from which on a list is the data set's
_BACKGROUND = "background"


def known_table(classes: Sequence[str]) -> LabelTable | None:
    """The table of the data set that has these classes, in their order; None where no data set has.

    Projects spell some names otherwise (ADE20K's `television`: `television receiver`): where at least 19 of
    20 are alike, at the same places, it is that data set. In another order (Pascal Context is also used in
    the alphabetical one) all must be alike, and with a `background` before or after them (its 60 classes)
    that is what the table ignores.

    Args:
        classes: in the order of a model's outputs.
    """
    given = [_spelling(name) for name in classes]
    for table in TABLES.values():
        known = [_spelling(name) for name in table.classes]
        if len(known) == len(given):
            alike = sum(one == other for one, other in zip(known, given, strict=True))
            if alike >= _ALIKE * len(known):
                return table
        wanted = set(known)
        if len(wanted) == len(known) and sorted(given) in (sorted(known), sorted([*known, _BACKGROUND])):
            return _reordered(table, [known.index(name) if name in wanted else -1 for name in given])
    return None


def _spelling(name: str) -> str:
    """The letters and digits of what stands before a comma, as our tables have them."""
    first = name.replace(";", ",").split(",")[0].casefold()
    plain = "".join(filter(str.isalnum, first))
    return pascal_context.ALIASES.get(plain, plain)


def _reordered(table: LabelTable, order: Sequence[int]) -> LabelTable:
    """The table with its classes in another order; -1 stands for what it ignores, as a class."""
    place = {old: new for new, old in enumerate(order)}
    place[IGNORE] = place.pop(-1, IGNORE)
    return dataclasses.replace(
        table,
        classes=tuple(_BACKGROUND if old < 0 else table.classes[old] for old in order),
        palette=np.array([(0, 0, 0) if old < 0 else table.palette[old] for old in order], np.uint8),
        raw_ids={raw: place[train] for raw, train in table.raw_ids.items()},
    )
