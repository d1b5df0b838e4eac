"""Losses of pixels in blocks of rows, so that logits of the labels' size never exist.

At 171 classes and 16 crops of 513x513 such logits take 2.7 GiB, and their gradient as much again. Logits at
the output stride are resized to the pixels of one block of rows after the other; where a gradient is wanted,
a block's is computed along with its losses and added to that of the logits at the output stride. That is
faster on a CPU, too (`benchmarks/loss.py`). A batch of up to `BLOCK` such logits is one block, and then
nothing is done by hand.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, Shaped

from hfgd_jax.geometry import IGNORE, Geometry, RowBlocks, block_to_pixels, row_blocks
from hfgd_jax.losses.pixels import Pixels, at_pixels, one_hot

BLOCK = 2**22  # float32 logits that are held at the pixels at once, of the whole batch

PixelLoss = Callable[[Pixels], Float[Array, "b H W"]]


def weighted_sum(
    loss: PixelLoss,
    logits: Float[Array, "b h w k"],
    labels: Integer[Array, "b H W"],
    weights: Float[Array, "b H W"],
    *,
    geometry: Geometry,
) -> Float[Array, ""]:
    """The sum over all pixels of weight times loss; float32.

    Args:
        loss: of each pixel.
        logits: of the padded grid at any output stride, of any float dtype.
        labels: class ids in [0, k), or `IGNORE`; any integer dtype; of the images' own size.
        weights: not negative. Losses of weight 0 may even be NaN. There is no gradient to the weights.
        geometry: of the grid.
    """
    weights = jax.lax.stop_gradient(weights)
    if _blocks(logits, labels, geometry).count > 1:
        return _sum_of_blocks(loss, geometry, logits, labels, weights)
    return jnp.sum(_weighted(loss(at_pixels(logits, labels, geometry=geometry)), weights))


def each_pixel(
    loss: PixelLoss,
    logits: Float[Array, "b h w k"],
    labels: Integer[Array, "b H W"],
    *,
    geometry: Geometry,
) -> Float[Array, "b H W"]:
    """The loss of each pixel; no gradient goes through it. Arguments as of `weighted_sum`."""
    logits, blocks = jax.lax.stop_gradient(logits), _blocks(logits, labels, geometry)
    if blocks.count == 1:
        return loss(at_pixels(logits, labels, geometry=geometry))
    maps, rows = _padded(logits, blocks), _rows(labels, blocks, IGNORE)

    def of_block(i: Array) -> Array:
        pixels = _pixels(_map_block(maps, i, blocks), _row_block(rows, i, blocks), blocks, geometry)
        return loss(pixels)

    found = jnp.moveaxis(jax.lax.map(of_block, jnp.arange(blocks.count)), 0, 1)
    found = found.reshape(labels.shape[0], -1, labels.shape[2])
    return found[:, blocks.above : blocks.above + labels.shape[1]]


def _blocks(logits: Array, labels: Array, geometry: Geometry) -> RowBlocks:
    height, width = labels.shape[1:]
    return row_blocks(logits.shape, (height, width), BLOCK, geometry=geometry)


def _weighted(losses: Array, weights: Array) -> Array:
    return jnp.where(weights > 0, weights * losses, 0.0)


def _padded(logits: Float[Array, "b h w k"], blocks: RowBlocks) -> Float[Array, "b m w k"]:
    return jnp.pad(logits, ((0, 0), blocks.padding, (0, 0), (0, 0)), mode="edge")


def _rows(x: Shaped[Array, "b H W"], blocks: RowBlocks, value: float) -> Shaped[Array, "b n W"]:
    """Labels or weights with what lies above and below the image."""
    below = blocks.count * blocks.height - blocks.above - x.shape[1]
    return jnp.pad(x, ((0, 0), (blocks.above, below), (0, 0)), constant_values=value)


def _map_block(maps: Array, i: Array, blocks: RowBlocks) -> Array:
    return jax.lax.dynamic_slice_in_dim(maps, i * blocks.rows, blocks.rows + 1, axis=1)


def _row_block(rows: Array, i: Array, blocks: RowBlocks) -> Array:
    return jax.lax.dynamic_slice_in_dim(rows, i * blocks.height, blocks.height, axis=1)


def _pixels(maps: Array, labels: Array, blocks: RowBlocks, geometry: Geometry) -> Pixels:
    logits = block_to_pixels(maps.astype(jnp.float32), blocks.height, labels.shape[2], geometry=geometry)
    return Pixels(logits, one_hot(labels, logits.shape[-1]), labels != IGNORE)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sum_of_blocks(
    loss: PixelLoss, geometry: Geometry, logits: Array, labels: Array, weights: Array
) -> Array:
    maps, labels, weights, blocks = _operands(logits, labels, weights, geometry)

    def add(i: Array, sums: Array) -> Array:
        part = (_map_block(maps, i, blocks), _row_block(labels, i, blocks), _row_block(weights, i, blocks))
        return sums + _sums(loss, geometry, blocks, *part)

    # Sums of each image: over a sharded batch they are added up once, at the end.
    return jnp.sum(jax.lax.fori_loop(0, blocks.count, add, jnp.zeros(logits.shape[0])))


def _forward(
    loss: PixelLoss, geometry: Geometry, logits: Array, labels: Array, weights: Array
) -> tuple[Array, Array]:
    """The sum, and its gradient to the logits."""
    maps, labels, weights, blocks = _operands(logits, labels, weights, geometry)

    def add(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        sums, gradient = carry
        of_maps = partial(
            _sums, loss, geometry, blocks,
            labels=_row_block(labels, i, blocks), weights=_row_block(weights, i, blocks),
        )  # fmt: skip
        more, pull = jax.vjp(of_maps, _map_block(maps, i, blocks).astype(jnp.float32))
        here = _map_block(gradient, i, blocks) + pull(jnp.ones_like(more))[0]
        gradient = jax.lax.dynamic_update_slice_in_dim(gradient, here, i * blocks.rows, axis=1)
        return sums + more, gradient

    start = jnp.zeros(logits.shape[0]), jnp.zeros(maps.shape, jnp.float32)
    sums, gradient = jax.lax.fori_loop(0, blocks.count, add, start)
    first, last = blocks.padding[0], blocks.padding[0] + logits.shape[1]
    own = gradient[:, first:last]  # the repeated rows are the first and the last one
    own = own.at[:, 0].add(gradient[:, :first].sum(1)).at[:, -1].add(gradient[:, last:].sum(1))
    return jnp.sum(sums), own.astype(logits.dtype)


def _backward(loss: PixelLoss, geometry: Geometry, gradient: Array, factor: Array) -> tuple[Array, Any, Any]:
    return (factor * gradient).astype(gradient.dtype), None, None


_sum_of_blocks.defvjp(_forward, _backward)


def _operands(
    logits: Array, labels: Array, weights: Array, geometry: Geometry
) -> tuple[Array, Array, Array, RowBlocks]:
    blocks = _blocks(logits, labels, geometry)
    return _padded(logits, blocks), _rows(labels, blocks, IGNORE), _rows(weights, blocks, 0.0), blocks


def _sums(
    loss: PixelLoss, geometry: Geometry, blocks: RowBlocks, maps: Array, labels: Array, weights: Array
) -> Float[Array, " b"]:
    """A block's sum of each image."""
    losses = loss(_pixels(maps, labels, blocks, geometry))
    return jnp.sum(_weighted(losses, weights), axis=(1, 2))
