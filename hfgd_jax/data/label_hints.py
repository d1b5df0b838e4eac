"""Recognises common mistakes in making label files by the values in them, and says how to mend them."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8

from hfgd_jax.data.labels import IGNORE, LabelTable, voc_colours


def hints(table: LabelTable, pixels: Mapping[int, int], colour_labels: int = 0) -> list[str]:
    """Sentences on what labels look like, where they do not look like the table's ids.

    Args:
        table: the label table, for the files' own values.
        pixels: value -> number of pixels, over a split.
        colour_labels: how many files hold colours instead of one channel.
    """
    out = []
    values = {value for value, count in pixels.items() if count}
    known = set(table.raw_ids) - {255}
    unknown, ids = values - set(table.raw_ids), values - {255}
    if colour_labels:
        out.append(
            f"{colour_labels} labels hold colours; they must hold ids in one channel (the data set 'folder' "
            "reads colours, with a classes.csv)"
        )
    if values == {0, 255} and table.raw_ids.get(255, IGNORE) == IGNORE:
        out.append("the values are 0 and 255, as in black and white masks; write the object's id, such as 1")
    elif unknown and _grey_of_palette(values, table):
        out.append(
            "the values are the greys of a palette's colours: palette files were turned to grey; keep their "
            "indices"
        )
    elif unknown == {max(known) + 1}:
        top = max(unknown)
        out.append(
            f"there is one value more than the table has, {top}; does a class lack in the list?"
            if min(known) in values
            else f"the values look shifted by one: {min(values)}-{top} in place of {min(known)}-{max(known)}"
        )
    elif unknown and min(known) == 0 and ids == set(range(1, max(ids) + 1)):
        out.append(
            f"the values are 1-{max(ids)}, and the list's ids are 0-{max(known)}: ids count from 0; are "
            "names missing, or are the labels shifted by one?"
        )
    return out


def _grey_of_palette(values: set[int], table: LabelTable) -> bool:
    wanted = values - {0, 255}
    palettes = (table.palette, voc_colours(range(22)))
    return len(wanted) > 2 and any(wanted <= _greys(palette) for palette in palettes)


def _greys(colours: UInt8[np.ndarray, "n 3"]) -> set[int]:
    """Luminance as image libraries round it (ITU-R 601)."""
    weighted = colours.astype(np.int64) @ np.array([19595, 38470, 7471])
    return set((weighted + 0x8000 >> 16).tolist())
