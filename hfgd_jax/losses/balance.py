"""Class weights from the pixel counts of a data set."""

import numpy as np
from jaxtyping import Integer

CAP = 10.0  # of a weight: ten times the median class's


def median_frequency(
    pixels: Integer[np.ndarray, " k"], pixels_of_images: Integer[np.ndarray, " k"]
) -> tuple[float, ...]:
    """Median-frequency balancing (Eigen and Fergus 2015): w_k = min(median(f) / f_k, 10), f_k = n_k / m_k.

    The median is over the classes that occur. Readings: only labelled pixels are counted; weights have a cap,
    without which a class of a few pixels dominates every step that it occurs in; a class that never occurs
    has weight 1.

    Args:
        pixels: n, the pixels of each class.
        pixels_of_images: m, the labelled pixels of all images in which the class occurs.
    """
    seen = pixels > 0
    frequency = pixels[seen] / pixels_of_images[seen]
    weights = np.ones(len(pixels))
    if len(frequency):
        weights[seen] = np.minimum(np.median(frequency) / frequency, CAP)
    return tuple(weights.tolist())
