"""Which records are evaluated together, and on which canvas: few shapes, planned from sizes alone."""

from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from hfgd_jax.data.augment import scaled_size
from hfgd_jax.errors import UserError

Size = tuple[int, int]  # height, width

MAX_SHAPES = 8  # more than this, and the canvases become coarser


class Canvas(NamedTuple):
    """Sizes that a batch's pictures and labels are padded to."""

    image: Size
    label: Size


def plan(
    sizes: Sequence[Size], batch_size: int, scale: Fraction, geometry: str
) -> list[tuple[Canvas, list[int]]]:
    """Global batches that take each record once.

    A canvas side is the smallest one on the grid that holds its picture, of the form k * step + 1
    (align_corners) or k * step (half_pixel); step is 64, doubled until there are at most `MAX_SHAPES` shapes.
    Pictures all of one size get the smallest canvas on the grid of 32.

    Args:
        sizes: height and width of each record, before scaling.
        batch_size: the global batch.
        scale: of the pictures.
        geometry: `align_corners` or `half_pixel`.

    Returns:
        For each batch its canvas and `batch_size` indices into `sizes`, -1 where it is filled up.
    """
    if geometry not in ("align_corners", "half_pixel"):
        raise UserError(f"geometry {geometry!r}: unknown; one of align_corners, half_pixel")
    extra = 1 if geometry == "align_corners" else 0
    step = 32 if len(set(sizes)) <= 1 else 64
    groups = _group(sizes, scale, step, extra)
    while len(groups) > MAX_SHAPES:
        step *= 2
        groups = _group(sizes, scale, step, extra)
    batches = []
    for canvas in sorted(groups):
        indices = groups[canvas]
        for first in range(0, len(indices), batch_size):
            rows = indices[first : first + batch_size]
            batches.append((canvas, rows + [-1] * (batch_size - len(rows))))
    return batches


def _group(sizes: Sequence[Size], scale: Fraction, step: int, extra: int) -> dict[Canvas, list[int]]:
    groups = defaultdict(list)
    for index, size in enumerate(sizes):
        canvas = Canvas(_round_up(scaled_size(size, scale), step, extra), _round_up(size, step, extra))
        groups[canvas].append(index)
    return dict(groups)


def _round_up(size: Size, step: int, extra: int) -> Size:
    return tuple(max(1, -(-(side - extra) // step)) * step + extra for side in size)
