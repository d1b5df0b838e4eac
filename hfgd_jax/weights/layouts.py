"""Converts tensors between the layouts of other projects' files and ours; see `names.base.WeightTarget`."""

import math

import numpy as np
from jaxtyping import Float

from hfgd_jax.weights.names.base import WeightTarget


def file_shape(target: WeightTarget, leaf: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in the file of a target whose leaf here has shape `leaf`."""
    *front, last = leaf
    last //= target.part[1]
    if target.layout == "conv":
        *window, fan_in = front
        return (last, fan_in, *(window or (1, 1)))
    if target.layout == "linear":
        return (last, *front)
    if target.layout == "channel_scale":
        return (last, 1, 1)
    return (*front, last)


def from_file(target: WeightTarget, value: np.ndarray, leaf: tuple[int, ...]) -> np.ndarray:
    """Converts a tensor of a file to the layout here; `leaf` is the shape of its part of the leaf."""
    if target.layout == "conv":
        value = value.transpose(2, 3, 1, 0)
    elif target.layout == "linear":
        value = value.T
    return value.reshape(leaf)


def to_file(target: WeightTarget, leaf: np.ndarray) -> np.ndarray:
    """The inverse of `from_file`: the target's part of a leaf, in the file's layout; contiguous."""
    index, parts = target.part
    width = leaf.shape[-1] // parts
    value = leaf[..., index * width : (index + 1) * width]
    if target.layout == "conv":
        value = value.reshape((1,) * (4 - value.ndim) + value.shape).transpose(3, 2, 0, 1)
    elif target.layout == "linear":
        value = value.T
    return np.ascontiguousarray(value.reshape(file_shape(target, leaf.shape)))


def resizable(target: WeightTarget, have: tuple[int, ...], want: tuple[int, ...]) -> bool:
    """Whether `have` is the shape of a position-bias table that differs in its window alone."""
    return (
        target.layout == "position_bias"
        and len(have) == 2
        and have[1] == want[1]
        and have[0] > 0
        and all(math.isqrt(rows) ** 2 == rows and rows % 2 for rows in (have[0], want[0]))
    )


def resize_position_bias(table: Float[np.ndarray, "rows heads"], rows: int) -> Float[np.ndarray, "new heads"]:
    """Resizes a table of relative position biases to another window, as Swin's authors do.

    A head's biases are a square map of offsets; it is resized bicubically (torch's: a = -0.75, half-pixel,
    clamped at the borders, not antialiased).

    Args:
        table: `[(2w - 1)^2, heads]`.
        rows: `(2v - 1)^2` for the new window v.
    """
    weights = _bicubic(math.isqrt(len(table)), math.isqrt(rows))
    side = weights.shape[1]
    maps = table.astype(np.float64).reshape(side, side, -1)
    return np.einsum("ai,bj,ijh->abh", weights, weights, maps).reshape(rows, -1).astype(np.float32)


def _bicubic(size: int, new: int) -> Float[np.ndarray, "new size"]:
    """The matrix that resizes a row of `size` samples to `new`."""
    a, weights = -0.75, np.zeros((new, size))
    centers = (np.arange(new) + 0.5) * size / new - 0.5
    for row, center in enumerate(centers):
        for sample in range(math.floor(center) - 1, math.floor(center) + 3):
            d = abs(center - sample)
            near = (a + 2) * d**3 - (a + 3) * d**2 + 1
            far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
            weights[row, min(max(sample, 0), size - 1)] += near if d <= 1 else far
    return weights
