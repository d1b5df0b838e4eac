"""Which images and which parts of them show best how runs differ (paper, Fig. 3, 7, 8, 9); pure functions."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Integer, UInt8
from scipy import ndimage

from hfgd_jax.data.labels import IGNORE
from hfgd_jax.evaluation import metrics

BOTH_RIGHT, ONLY_FIRST, ONLY_LAST, NEITHER = range(4)  # what `outcomes` holds, and IGNORE


class Box(NamedTuple):
    """A part of an image: its upper left pixel and its size."""

    top: int
    left: int
    height: int
    width: int

    @property
    def part(self) -> tuple[slice, slice]:
        """Rows and columns, to index an image with."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def disagreement(
    masks: Integer[np.ndarray, "n h w"], label: Integer[np.ndarray, "h w"]
) -> Bool[np.ndarray, "h w"]:
    """The labelled pixels to which not all of the masks give one class.

    Args:
        masks: class ids of each run.
        label: class ids, 255 for ignored.
    """
    return (masks != masks[:1]).any(0) & (label != IGNORE)


def outcomes(
    first: Integer[np.ndarray, "h w"],
    last: Integer[np.ndarray, "h w"],
    label: Integer[np.ndarray, "h w"],
) -> UInt8[np.ndarray, "h w"]:
    """For each pixel which of two masks has the label's class.

    Args:
        first, last: class ids.
        label: class ids, 255 for ignored.

    Returns:
        `BOTH_RIGHT`, `ONLY_FIRST`, `ONLY_LAST` or `NEITHER`; `IGNORE` where the label is ignored.
    """
    one, other = first == label, last == label
    found = np.select([one & other, one, other], [BOTH_RIGHT, ONLY_FIRST, ONLY_LAST], NEITHER)
    return np.where(label == IGNORE, IGNORE, found).astype(np.uint8)


def image_iou(
    mask: Integer[np.ndarray, "h w"], label: Integer[np.ndarray, "h w"], num_classes: int
) -> float | None:
    """mIoU of one image, over the classes in mask or label, in [0, 1]; None where nothing is labelled."""
    matrix = metrics.image_matrix(label, mask, num_classes)
    if not matrix.any():
        return None
    return metrics.summarize(matrix, [str(k) for k in range(num_classes)])["mIoU"]


def largest(scores: Sequence[float | None], count: int) -> list[int]:
    """Positions of the `count` largest scores, the largest first, without those that are None."""
    present = [i for i, score in enumerate(scores) if score is not None]
    return sorted(present, key=lambda i: (-float(scores[i] or 0.0), i))[:count]


def zoom_boxes(difference: Bool[np.ndarray, "h w"], count: int, share: float) -> list[Box]:
    """Parts of an image with most of its differing pixels, the fullest first; they do not overlap.

    Pixels in the middle of a box count more than those at its border (a tent: two box filters, one after the
    other), so that what differs is in the middle of the picture.

    Args:
        difference: the pixels that differ.
        count: of boxes, at most; a box without a differing pixel is left out.
        share: sides of a box as a share of the image's, in (0, 1].
    """
    sides = [max(1, round(side * share)) for side in difference.shape]
    filtered = difference.astype(np.float64)
    for _ in range(2):
        filtered = ndimage.uniform_filter(filtered, [max(1, side // 2) for side in sides], mode="constant")
    # By the box's upper left pixel, for boxes within the image.
    height, width = (whole - side + 1 for whole, side in zip(difference.shape, sides, strict=True))
    score = filtered[sides[0] // 2 :, sides[1] // 2 :][:height, :width].copy()
    rows, columns = np.ogrid[:height, :width]
    boxes: list[Box] = []
    while len(boxes) < count:
        top, left = (int(i) for i in np.unravel_index(np.argmax(score), score.shape))
        box = Box(top, left, *sides)
        if score[top, left] < 0 or not difference[box.part].any():
            break
        boxes.append(box)
        score[(abs(rows - top) < sides[0]) & (abs(columns - left) < sides[1])] = -1.0
    return boxes
