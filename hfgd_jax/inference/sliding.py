"""Sliding windows over padded images: pure functions of arrays, compiled once for each canvas.

Windows lie on multiples of 32 pixels, the stride of the backbone's last feature, so that a window's features
and logits sit where those of the whole image sit; overlapping logits are averaged there, at the output
stride. A convolutional model's logits, away from a window's borders by its receptive field, thus equal those
of the whole image. The windows of an image depend on its own size alone, not on its canvas: they start
every `stride` pixels, and the last one where it ends with the image's own grid.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

COARSEST = 32  # pixels; windows start on its multiples

Size = tuple[int, int]  # height, width


def window_count(side: int, window: int, stride: int) -> int:
    """Windows along a canvas side; images that are shorter need fewer."""
    return 1 + max(0, -(-(side - window) // stride))


def window_starts(
    size: Int[Array, "b 2"], number: Int[Array, "2"], window: Size, stride: Size
) -> tuple[Int[Array, "b 2"], Bool[Array, " b"]]:
    """Top left corners of each image's window in row and column `number`, and whether there is one.

    Args:
        size: of the images proper.
        number: row and column of the window, from 0.
        window: on-grid height and width.
        stride: multiples of 32.
    """
    window, stride = jnp.asarray(window), jnp.asarray(stride)
    last = -(-jnp.maximum(size - window, 0) // COARSEST) * COARSEST
    start = jnp.minimum(number * stride, last)
    before = jnp.minimum((number - 1) * stride, last)  # negative for the first
    return start, (start > before).all(-1)


def cut(
    images: UInt8[Array, "b H W 3"],
    size: Int[Array, "b 2"],
    number: Int[Array, "2"],
    window: Size,
    stride: Size,
) -> UInt8[Array, "b h w 3"]:
    """The window in row and column `number` of each image (see `window_starts`)."""
    start, _ = window_starts(size, number, window, stride)
    return jax.vmap(lambda x, at: jax.lax.dynamic_slice(x, (at[0], at[1], 0), (*window, 3)))(images, start)


def add_window(
    total: Float[Array, "b H W k"] | None,
    logits: Float[Array, "b h w k"],
    size: Int[Array, "b 2"],
    number: Int[Array, "2"],
    shape: Size,
    window: Size,
    stride: Size,
    output_stride: int,
) -> Float[Array, "b H W k"]:
    """Adds a window's logits to the sum at their place.

    Args:
        total: the sum so far, None where this is the first window.
        logits: of the window, every `output_stride` pixels; those of images without one are left out.
        size, number, window, stride: as in `window_starts`.
        shape: H and W, of the canvas at the output stride.
        output_stride: pixels from one logit to the next.
    """
    if total is None:
        total = jnp.zeros((logits.shape[0], *shape, logits.shape[-1]), jnp.float32)
    start, there = window_starts(size, number, window, stride)

    def add(total, logits, start, there):
        at = (start[0] // output_stride, start[1] // output_stride, 0)
        here = jax.lax.dynamic_slice(total, at, logits.shape)
        return jax.lax.dynamic_update_slice(total, here + jnp.where(there, logits, 0), at)

    return jax.vmap(add)(total, logits, start, there)


def average(
    total: Float[Array, "b H W k"],
    size: Int[Array, "b 2"],
    covered: Size,
    counts: Size,
    window: Size,
    stride: Size,
    output_stride: int,
) -> Float[Array, "b H W k"]:
    """Divides the sum of all windows by how many cover each place; 0 where none does.

    Args:
        total: what `place` gave in the end.
        size, window, stride, output_stride: as there.
        covered: height and width of a window's logits.
        counts: rows and columns of windows (see `window_count`).
    """
    for axis in (0, 1):
        at = jnp.arange(total.shape[1 + axis])
        times = 0
        for number in range(counts[axis]):
            where = jnp.zeros(2, jnp.int32).at[axis].set(number)
            start, there = window_starts(size, where, window, stride)
            first = start[:, axis, None] // output_stride
            times += there[:, None] & (at >= first) & (at < first + covered[axis])
        times = jnp.maximum(times, 1).astype(jnp.float32)
        total = total / (times[:, :, None, None] if axis == 0 else times[:, None, :, None])
    return total
