"""Scores that look closer than mIoU: class boundaries, and objects that are small.

Boundary IoU is that of Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation"
(CVPR 2021): the IoU of the parts of mask and label that lie within a distance of their own contours, 2 % of
the image's diagonal, chessboard metric, the image's edge being contour. Here (readings) it is computed for
the classes of a semantic map, summed over the set as IoU is, and an ignored pixel is ignored in both maps: it
belongs to no band, and what it borders on ends there.

A small object (reading) is an 8-connected component of one class in the label that covers less than 0.1 % of
the image; it is found where at least half of its pixels are predicted right.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Int64, UInt8

from hfgd_jax.data.labels import IGNORE

BAND = 0.02  # of the diagonal: the width of a boundary
SMALL = 0.001  # of the image's pixels: an object with fewer is small


class Details:
    """Counts per class, added up image by image.

    Attributes:
        counts: int64 `[4, K]`: pixels in both boundaries, pixels in either, small objects found, small
            objects.
    """

    def __init__(self, num_classes: int):
        self.counts = np.zeros((4, num_classes), np.int64)

    def add(self, label: UInt8[np.ndarray, "h w"], prediction: UInt8[np.ndarray, "h w"]) -> None:
        """Counts one image: train ids, 255 in the label for ignored."""
        classes = self.counts.shape[1]
        self.counts[:2] += boundary_counts(label, prediction, classes)
        self.counts[2:] += small_object_counts(label, prediction, classes)

    def columns(self) -> dict[str, list[float | None]]:
        """`boundary_IoU` and `small_object_recall` of each class, in [0, 1]; None where it has neither."""
        both, either, found, objects = self.counts.tolist()
        return {
            "boundary_IoU": _ratios(both, either),
            "small_object_recall": _ratios(found, objects),
        }

    def summary(self, classes: Sequence[str]) -> dict[str, Any]:
        """For JSON: the mean of each column over the classes that have it, and `per_class_...` by name."""
        columns, out = self.columns(), {}
        for name, values in columns.items():
            present = [value for value in values if value is not None]
            out[name] = float(np.mean(present)) if present else None
        for name, values in columns.items():
            out[f"per_class_{name}"] = dict(zip(classes, values, strict=True))
        return out


def boundary(label: UInt8[np.ndarray, "h w"], width: int) -> np.ndarray:
    """Pixels with another label, or the image's edge, within `width` pixels (chessboard): bool `[h, w]`.

    The bands of all classes at once: a pixel survives the erosion of its own class's mask exactly where the
    largest and the smallest label around it are the same.
    """
    window = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    band = cv2.erode(label, window) != cv2.dilate(label, window)
    band[:width], band[-width:], band[:, :width], band[:, -width:] = True, True, True, True
    return band


def boundary_counts(
    label: UInt8[np.ndarray, "h w"], prediction: UInt8[np.ndarray, "h w"], num_classes: int
) -> Int64[np.ndarray, "2 k"]:
    """For each class the pixels in both boundaries, and those in either."""
    width = max(1, round(BAND * float(np.hypot(*label.shape))))
    prediction = np.where(label == IGNORE, label, prediction)
    seen, wanted = prediction.copy(), label.copy()
    seen[~boundary(prediction, width)] = IGNORE
    wanted[~boundary(label, width)] = IGNORE
    both = _count(wanted[seen == wanted], num_classes)
    return np.stack([both, _count(seen, num_classes) + _count(wanted, num_classes) - both])


def small_object_counts(
    label: UInt8[np.ndarray, "h w"], prediction: UInt8[np.ndarray, "h w"], num_classes: int
) -> Int64[np.ndarray, "2 k"]:
    """For each class the small objects that are found, and all of them."""
    counts = np.zeros((2, num_classes), np.int64)
    for k in np.flatnonzero(_count(label, num_classes)):
        number, components, stats, _ = cv2.connectedComponentsWithStats(
            (label == k).astype(np.uint8), connectivity=8, ltype=cv2.CV_32S
        )
        area = stats[:, cv2.CC_STAT_AREA]
        right = np.bincount(components[prediction == k], minlength=number)
        small = area < SMALL * label.size
        small[0] = False  # the rest of the image
        counts[:, k] = (small & (2 * right >= area)).sum(), small.sum()
    return counts


def _count(ids: np.ndarray, num_classes: int) -> np.ndarray:
    return np.bincount(ids.ravel(), minlength=256)[:num_classes].astype(np.int64)


def _ratios(parts: Sequence[int], wholes: Sequence[int]) -> list[float | None]:
    return [part / whole if whole else None for part, whole in zip(parts, wholes, strict=True)]
