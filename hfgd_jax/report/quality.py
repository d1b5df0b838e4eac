"""Which labels a model doubts: a score of each image, and the regions where it all but rules them out.

The score of an image is that of cleanlab (`cleanlab.segmentation.rank.get_label_quality_scores`, method
"softmin"; Lad and Mueller, "Estimating label quality and errors in semantic segmentation data via any model",
arXiv:2307.05080, 2023), written for one image at a time. An ignored pixel has no score. Regions are ours.
"""

import dataclasses

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from hfgd_jax.data.labels import IGNORE

TEMPERATURE = 0.1  # cleanlab's default
MARGIN = 0.005  # of the image's diagonal: pixels this near the edge of a region say little


@dataclasses.dataclass(frozen=True)
class Region:
    """A connected part of an image with one class of the label, which the model doubts, and one of the model.

    Attributes:
        given, suggested: the label's class and the model's.
        pixels: its size.
        share: of the image's pixels.
        confidence: mean probability of the suggested class.
        score: sum over its inner pixels of the suggested class's probability less the given one's, over the
            image's pixels; 0 where it is too thin to have inner pixels.
        box: left, top, right and bottom in [0, 1], of the image's width and height.
    """

    given: int
    suggested: int
    pixels: int
    share: float
    confidence: float
    score: float
    box: tuple[float, float, float, float]


def softmin_score(given: Float32[np.ndarray, " n"], temperature: float = TEMPERATURE) -> float | None:
    """Label quality of an image in [0, 1], low where labels are doubtful; None without pixels.

    The mean of the self-confidences s, weighted by softmax((1 - s) / temperature): the lowest count most.

    Args:
        given: self-confidences: at each labelled pixel, the probability of its label's class.
        temperature: above 0; towards 0 the mean becomes the minimum.
    """
    if not given.size:
        return None
    s = given.astype(np.float64)
    weights = np.exp((s.min() - s) / temperature)
    return float(weights @ s / weights.sum())


def regions(
    label: UInt8[np.ndarray, "h w"],
    mask: UInt8[np.ndarray, "h w"],
    confidence: Float32[np.ndarray, "h w"],
    given: Float32[np.ndarray, "h w"],
    *,
    doubt: float,
    most: int,
) -> list[Region]:
    """The 8-connected regions of confident disagreement that have inner pixels, the highest scores first.

    A label is doubted where the model has another class and gives the label's at most a probability of
    `doubt`. That the model is sure of its own class says less: where it errs, it mostly leaves the label's
    class some probability (benchmarks/planted_label_errors.py). Errors of a model along contours are thin,
    and labels are inexact there by nature; a region counts by the pixels that are farther than `MARGIN` of
    the diagonal from what is not of it.

    Args:
        label: train ids, 255 ignored.
        mask: the model's train ids.
        confidence: the probability of the mask's class.
        given: the probability of the label's class; not read where that is ignored.
        doubt: probability of the label's class up to which it is doubted.
        most: how many to return.
    """
    doubted = (mask != label) & (label != IGNORE) & (given <= doubt)
    pairs = np.where(doubted, label.astype(np.int32) * 256 + mask, -1)
    radius = max(1, round(MARGIN * float(np.hypot(*label.shape))))
    values, counts = np.unique(pairs[doubted], return_counts=True)
    smallest = (radius + 1) ** 2  # a smaller one has no inner pixel, not even in a corner of the image
    found = []
    for pair in values[counts >= smallest].tolist():
        found += _components(pairs == pair, divmod(pair, 256), confidence, given, radius)
    found.sort(key=lambda region: -region.score)
    return found[:most]


def _components(
    where: np.ndarray, classes: tuple[int, int], confidence: np.ndarray, given: np.ndarray, radius: int
) -> list[Region]:
    """The components of one pair of classes, looked at within their bounding box and a margin."""
    (height, width), (x, y, w, h) = where.shape, cv2.boundingRect(where.astype(np.uint8))
    x0, y0, x1, y1 = max(0, x - radius), max(0, y - radius), x + w + radius, y + h + radius
    part = np.ascontiguousarray(where[y0:y1, x0:x1], dtype=np.uint8)
    sure, own = confidence[y0:y1, x0:x1], given[y0:y1, x0:x1]
    number, ids, stats, _ = cv2.connectedComponentsWithStats(part, connectivity=8, ltype=cv2.CV_32S)
    window = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    # Beyond the image's edge a region goes on.
    inner = cv2.erode(part, window, borderType=cv2.BORDER_CONSTANT, borderValue=1).astype(bool)
    evidence = np.bincount(ids[inner], (sure - own)[inner], minlength=number)
    total = np.bincount(ids.ravel(), sure.ravel(), minlength=number)
    found = []
    for i in np.flatnonzero(evidence[1:] > 0) + 1:
        left, top, across, down, pixels = stats[i].tolist()
        left, top = x0 + left, y0 + top
        box = (left / width, top / height, (left + across) / width, (top + down) / height)
        score = float(evidence[i] / where.size)
        region = Region(*classes, pixels, pixels / where.size, float(total[i] / pixels), score, box)
        found.append(region)
    return found
