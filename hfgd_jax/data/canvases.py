"""Plans evaluation's batches: which records go together, and on canvases of which few shapes."""

from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from hfgd_jax.data.augment import scaled_size
from hfgd_jax.errors import UserError

Size = tuple[int, int]  # height, width

MAX_SHAPES = 8  # groups of records, hence compiled shapes a scale


class Canvas(NamedTuple):
    """Sizes that a batch's images, at each scale, and its labels are padded to."""

    images: tuple[Size, ...]
    label: Size


def plan(
    sizes: Sequence[Size], batch_size: int, scales: Sequence[Fraction], geometry: str
) -> list[tuple[Canvas, list[int]]]:
    """Global batches that take each record once.

    Records are grouped by their labels' canvas, whose sides are the smallest of the form k * step + 1
    (align_corners) or k * step (half_pixel) that hold the label; step is 64, doubled until there are at most
    `MAX_SHAPES` groups, and 32 where all records have one size. A group's canvas at a scale is the smallest
    one on the grid of 32 that holds all of its images at that scale. So there are as many compiled shapes
    as groups, times the scales.

    Args:
        sizes: height and width of each record, before scaling.
        batch_size: the global batch.
        scales: of the images, each a view of every record.
        geometry: `align_corners` or `half_pixel`.

    Returns:
        For each batch its canvas and `batch_size` indices into `sizes`, -1 where it is filled up.
    """
    if geometry not in ("align_corners", "half_pixel"):
        raise UserError(f"geometry {geometry!r}: unknown; one of align_corners, half_pixel")
    extra = 1 if geometry == "align_corners" else 0
    step = 32 if len(set(sizes)) <= 1 else 64
    groups = _group(sizes, step, extra)
    while len(groups) > MAX_SHAPES:
        step *= 2
        groups = _group(sizes, step, extra)
    batches = []
    for label, indices in sorted(groups.items()):
        canvas = Canvas(tuple(_canvas([sizes[i] for i in indices], scale, extra) for scale in scales), label)
        for first in range(0, len(indices), batch_size):
            rows = indices[first : first + batch_size]
            batches.append((canvas, rows + [-1] * (batch_size - len(rows))))
    return batches


def _group(sizes: Sequence[Size], step: int, extra: int) -> dict[Size, list[int]]:
    groups = defaultdict(list)
    for index, size in enumerate(sizes):
        groups[_round_up(size, step, extra)].append(index)
    return dict(groups)


def _canvas(sizes: Sequence[Size], scale: Fraction, extra: int) -> Size:
    scaled = [scaled_size(size, scale) for size in sizes]
    return _round_up((max(h for h, _ in scaled), max(w for _, w in scaled)), 32, extra)


def _round_up(size: Size, step: int, extra: int) -> Size:
    height, width = (max(1, -(-(side - extra) // step)) * step + extra for side in size)
    return height, width
