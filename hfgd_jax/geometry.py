"""The one resize, grid sizes and padding.

Two geometries. `align_corners` (the default; a reading, see docs/readings.md): a stride-s feature sits on
pixels 0, s, 2s, ..., an on-grid size is `32k + 1`, resizing maps corners onto corners (x2 takes n to 2n - 1)
and labels shrink by taking every s-th pixel. `half_pixel`: samples are centres of cells, an on-grid size is
`32k`.

Sizes are `(height, width)`; arrays are NHWC. Integer factors, the only ones between strides of the grid, are
slices and broadcast interpolation, and a few samples (the bins of a pooled map) are added up one by one: no
gather, whose gradient is a slow scatter, and no matrix product. A side of symbolic size
(`jax.export.symbolic_shape`) is resized in the same way where its factor is known, else by a gather.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim, symbolic_shape
from jaxtyping import Array, Float, Integer, Shaped

Geometry = Literal["align_corners", "half_pixel"]
_Symbolic = type(symbolic_shape("n")[0])  # of a symbolic side; JAX has no public name for it
Side = int | _Symbolic
Size = tuple[Side, Side]
COARSEST = 32  # stride of the coarsest feature
IGNORE = 255  # the label of a pixel that no loss counts; `data.labels.IGNORE` is the same
_FEW = 8  # samples whose weighted sum is cheaper than the gradient of a gather


def grid_size(size: Size, geometry: Geometry) -> Size:
    """The smallest on-grid size that is not below `size`.

    Args:
        size: height and width, at least 1 each.
        geometry: `align_corners` gives `32k + 1`, `half_pixel` gives `32k`.
    """
    extra = _extra(geometry)
    height, width = (-(-(side - extra) // COARSEST) * COARSEST + extra for side in size)
    return height, width


def feature_size(size: Size, stride: int, geometry: Geometry) -> Size:
    """Spatial size of a feature map at `stride` of an on-grid input of `size`."""
    extra = _extra(geometry)
    height, width = ((side - extra) // stride + extra for side in size)
    return height, width


def pad_to(
    x: Shaped[Array, "b h w *c"], size: Size, value: float | tuple[float, ...]
) -> Shaped[Array, "b H W *c"]:
    """Pads at the bottom and right up to `size`.

    Args:
        x: images, features or label maps of any dtype.
        size: height and width of the result.
        value: what to pad with: a number, or one number per channel; rounded where x holds integers.

    Raises:
        ValueError: x is larger than `size`.
    """
    height, width = x.shape[1:3]
    if height > size[0] or width > size[1]:
        raise ValueError(f"pad_to: {(height, width)} is larger than {tuple(size)}")
    if (height, width) == tuple(size):
        return x
    fill = np.asarray(value)
    if jnp.issubdtype(x.dtype, jnp.integer):
        fill = np.round(fill)
    shape = (x.shape[0], *size, *x.shape[3:])
    return jnp.broadcast_to(jnp.asarray(fill, x.dtype), shape).at[:, :height, :width].set(x)


def resize(
    x: Shaped[Array, "b h w *c"],
    size: Size,
    *,
    method: Literal["bilinear", "nearest"] = "bilinear",
    geometry: Geometry = "align_corners",
) -> Shaped[Array, "b H W *c"]:
    """Resizes floats bilinearly, and label maps by the nearest pixel; never antialiased.

    Bilinear equals torch's `interpolate(mode="bilinear", align_corners=...)`. Nearest equals torch's
    `nearest-exact` in `half_pixel`; in `align_corners` it takes the pixel nearest to `i * (n - 1) / (m - 1)`
    (every s-th one where the size shrinks by an integer; the later one at a tie).

    Args:
        x: `[B, h, w, C]` floats, or `[B, h, w]` or `[B, h, w, C]` integers (nearest only).
        size: height and width of the result.
        method: bilinear computes in float32 (at least) and returns x's dtype.
        geometry: where the samples sit.

    Raises:
        ValueError: an unknown method or geometry, or bilinear on integers.
    """
    if method not in ("bilinear", "nearest"):
        raise ValueError(f"resize: method={method!r}: want 'bilinear' or 'nearest'")
    corners = bool(_extra(geometry))
    if method == "nearest":
        for axis in (1, 2):
            x = _nearest(x, axis, size[axis - 1], corners)
        return x
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"resize: bilinear needs floats, got {x.dtype}; use method='nearest' for labels")
    if x.shape[1:3] == tuple(size):
        return x
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    for axis in (1, 2):
        y = _linear(y, axis, size[axis - 1], corners)
    return y.astype(x.dtype)


def to_pixels(x: Float[Array, "b h w c"], size: Size, *, geometry: Geometry) -> Float[Array, "b H W c"]:
    """Resizes an output-stride map of the padded grid to the grid's pixels and crops it to `size`.

    This turns logits into logits at the pixels.

    Args:
        x: of any float dtype, which the result has too.
        size: height and width of the images before padding.
        geometry: of the grid.
    """
    x = resize(x, grid_size(size, geometry), geometry=geometry)
    return x[:, : size[0], : size[1]]


class RowBlocks(NamedTuple):
    """How a map of the padded grid is cut into blocks of rows that reach the pixels one at a time.

    Attributes:
        padding: rows to be repeated above and below the map, before it is cut.
        count: of blocks. Block i is rows `i * rows` to `(i + 1) * rows` of the padded map, both included.
        rows: see there.
        above: pixel rows of the first block that lie above the image.
        height: pixel rows of a block (`block_to_pixels`).
    """

    padding: tuple[int, int]
    count: int
    rows: int
    above: int
    height: int


def row_blocks(shape: Sequence[int], size: tuple[int, int], limit: int, *, geometry: Geometry) -> RowBlocks:
    """Blocks of which none has more than `limit` values at the pixels, or just one row of the map.

    Args:
        shape: of a map `[b, h, w, c]` at any output stride.
        size: height and width of the images before padding.
        limit: of the values of a block, at the pixels, of the whole batch.
        geometry: of the grid.
    """
    corners, (height, width) = bool(_extra(geometry)), grid_size(size, geometry)
    batch, rows, _, channels = shape
    stride = _factor(height, rows, corners) or 1
    # With rows repeated at the ends each pixel lies between two rows, or on the first of them.
    intervals = rows if corners else rows + 1
    count = -(-intervals // max(1, limit // (batch * stride * width * channels)))
    each = -(-intervals // count)
    padding = (0, count * each + 1 - rows) if corners else (1, count * each - rows)
    return RowBlocks(padding, count, each, 0 if corners else (stride + 1) // 2, each * stride)


def block_to_pixels(
    x: Float[Array, "b m w c"], height: int, width: int, *, geometry: Geometry
) -> Float[Array, "b height width c"]:
    """A block of `row_blocks` at the pixels: the rows that `to_pixels` has there.

    Args:
        x: rows of the padded map.
        height: `RowBlocks.height`.
        width: of the images before padding.
        geometry: of the grid.
    """
    corners, stride = bool(_extra(geometry)), height // (x.shape[1] - 1)
    x = _intervals(x, 1, _phases(stride, corners))
    return _linear(x, 2, grid_size((1, width), geometry)[1], corners)[:, :, :width]


def labels_at(labels: Integer[Array, "b H W"], size: Size, *, geometry: Geometry) -> Integer[Array, "b h w"]:
    """Labels shrunk to a feature size of the padded grid; what lies in the padding is `IGNORE`."""
    grid = grid_size(labels.shape[1:3], geometry)
    return resize(pad_to(labels, grid, IGNORE), size, method="nearest", geometry=geometry)


def _extra(geometry: Geometry) -> int:
    if geometry not in ("align_corners", "half_pixel"):
        raise ValueError(f"geometry={geometry!r}: want 'align_corners' or 'half_pixel'")
    return 1 if geometry == "align_corners" else 0


def _factor(large: Side, small: Side, corners: bool) -> int:
    """The integer factor between two sizes of an axis; 0 where there is none or it is not known."""
    large, small = (large - 1, small - 1) if corners else (large, small)
    if is_symbolic_dim(large) or is_symbolic_dim(small):
        factor = large // small if is_symbolic_dim(small) else 0
        return factor if isinstance(factor, int) and factor * small == large else 0
    return large // small if small > 0 and large % small == 0 else 0


def _every(x: Array, axis: int, start: int, step: int) -> Array:
    return x[:, start::step] if axis == 1 else x[:, :, start::step]


def _nearest(x: Array, axis: int, m: Side, corners: bool) -> Array:
    n = x.shape[axis]
    if n == m:
        return x
    if step := _factor(n, m, corners):
        return _every(x, axis, 0 if corners else step // 2, step)
    i = np.arange(m)
    if corners:
        index = (2 * i * (n - 1) + (m - 1)) // (2 * (m - 1)) if m > 1 else i
    else:
        index = (2 * i + 1) * n // (2 * m)
    return jnp.take(x, index, axis=axis)


def _linear(x: Array, axis: int, m: Side, corners: bool) -> Array:
    n = x.shape[axis]
    if n == m:
        return x
    if s := _factor(m, n, corners):
        return _enlarge_corners(x, axis, s) if corners else _enlarge_cells(x, axis, s)
    if s := _factor(n, m, corners):
        if corners:
            return _every(x, axis, 0, s)
        middle = _every(x, axis, (s - 1) // 2, s)
        return middle if s % 2 else (middle + _every(x, axis, s // 2, s)) / 2
    if is_symbolic_dim(n) or is_symbolic_dim(m):
        return _sample(x, axis, m, corners)
    i = np.arange(m)
    source = i * ((n - 1) / max(m - 1, 1)) if corners else np.clip((i + 0.5) * n / m - 0.5, 0, n - 1)
    low = np.clip(np.floor(source).astype(int), 0, n - 1)
    high = np.minimum(low + 1, n - 1)
    if n <= _FEW:
        t = (source - low)[:, None]
        weights = (np.eye(n)[low] * (1 - t) + np.eye(n)[high] * t).astype(x.dtype)
        return sum(_part(x, axis, j, j + 1) * _along(weights[:, j], axis, x.ndim) for j in range(n))
    t = _along((source - low).astype(x.dtype), axis, x.ndim)
    return jnp.take(x, low, axis=axis) * (1 - t) + jnp.take(x, high, axis=axis) * t


def _sample(x: Array, axis: int, m: Side, corners: bool) -> Array:
    """`_linear` at a side of symbolic size: positions are exact, in integers, up to 2^31."""
    n, i = x.shape[axis], jnp.arange(m)
    position, unit = (i * (n - 1), jnp.maximum(m - 1, 1)) if corners else ((2 * i + 1) * n - m, 2 * m)
    position = jnp.clip(position, 0, (n - 1) * unit)
    low = position // unit
    t = ((position - low * unit) / unit).astype(x.dtype).reshape((-1,) + (1,) * (x.ndim - 1 - axis))
    high = jnp.minimum(low + 1, n - 1)
    return jnp.take(x, low, axis=axis) * (1 - t) + jnp.take(x, high, axis=axis) * t


def _enlarge_corners(x: Array, axis: int, s: int) -> Array:
    """n -> (n - 1) * s + 1: each interval between samples gives its first sample and s - 1 points inside."""
    last = _part(x, axis, x.shape[axis] - 1, None)
    return jnp.concatenate([_intervals(x, axis, _phases(s, corners=True)), last], axis=axis)


def _enlarge_cells(x: Array, axis: int, s: int) -> Array:
    """n -> n * s: the n + 1 intervals between edge-replicated samples, cropped at both ends."""
    n = x.shape[axis]
    x = jnp.concatenate([_part(x, axis, 0, 1), x, _part(x, axis, n - 1, None)], axis=axis)
    start = (s + 1) // 2
    return _part(_intervals(x, axis, _phases(s, corners=False)), axis, start, start + n * s)


def _phases(s: int, corners: bool) -> np.ndarray:
    """Where the s points of an interval between two samples lie, from 0 to 1."""
    return (np.arange(s) + (0 if corners or s % 2 else 0.5)) / s


def _intervals(x: Array, axis: int, t: np.ndarray) -> Array:
    """Between neighbours a, b along an axis of n samples, a + t * (b - a) for every t: (n - 1) * len(t).

    Few phases are stacked, whose gradient is a sum of slices; many are broadcast, which is faster forwards.
    """
    n, shape = x.shape[axis], list(x.shape)
    shape[axis] = (n - 1) * t.size
    a, b = _part(x, axis, 0, n - 1), _part(x, axis, 1, n)
    if t.size <= 4:
        phases = [a if v == 0 else a * (1 - v) + b * v for v in t.tolist()]
        return jnp.stack(phases, axis=axis + 1).reshape(shape)
    weight = _along(t.astype(x.dtype), axis + 1, x.ndim + 1)
    a, b = jnp.expand_dims(a, axis + 1), jnp.expand_dims(b, axis + 1)
    return (a * (1 - weight) + b * weight).reshape(shape)


def _part(x: Array, axis: int, start: Side, stop: Side | None) -> Array:
    return x[:, start:stop] if axis == 1 else x[:, :, start:stop]


def _along(values: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    return values.reshape([-1 if a == axis else 1 for a in range(ndim)])
