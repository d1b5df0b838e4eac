"""Modulated deformable convolution, DCNv2 (Zhu et al., CVPR 2019), for XLA.

One tap of the kernel at a time: the sampled features of a tap are a product with that tap's `[c, d]` matrix
and are added up, in a loop of fixed length whose body is computed again for the gradient. All taps at once
would hold k * k times the feature map, and the gradient several times that. Each corner of the
bilinear cell is a gather of rows of one image, so that a batch which is split over devices stays split.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from hfgd_jax.geometry import Side
from hfgd_jax.models.layers import Conv

# The published code's initialisation of a deformable kernel: uniform within 1 / sqrt(fan_in).
deformable_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def deformable_convolve(
    x: Float[Array, "b h w c"],
    offsets: Float[Array, "b H W g kk 2"],
    masks: Float[Array, "b H W g kk"],
    kernel: Float[Array, "k k c d"],
    *,
    stride: int = 1,
    dilation: int = 1,
) -> Float[Array, "b H W d"]:
    """The sum over the taps of `mask * x(position + offset) @ kernel[tap]`, with symmetric padding.

    x is sampled bilinearly; of the four corners of a cell, those outside of x are zero. Zero offsets
    and masks of one give the plain convolution. Positions, interpolation weights, sums over corners and taps
    and x's gradient are float32 (at least); each tap's product is in x's dtype. Differentiable in all four
    arrays; where a position is a whole number, the offset's derivative is the one from above, as in
    torchvision.

    Args:
        x: the features.
        offsets: in samples of x, added to where the plain convolution reads: `[..., 0]` is down and
            `[..., 1]` to the right. Taps are numbered row by row. Group n of g holds the channels from
            `n * c / g` on.
        masks: factors of the sampled features.
        kernel: k is odd.
        stride: of the output's positions.
        dilation: between taps.

    Returns:
        `H = (h - 1) // stride + 1`, W likewise; x's dtype.

    Raises:
        ValueError: shapes that do not match.
    """
    (b, h, w, c), (size, _, _, d), groups = x.shape, kernel.shape, offsets.shape[3]
    height, width = ((side - 1) // stride + 1 for side in (h, w))
    _expect("offsets", offsets, (b, height, width, groups, size * size, 2))
    _expect("masks", masks, (b, height, width, groups, size * size))
    _expect("kernel", kernel, (size, size, c, d))
    if c % groups or size % 2 == 0:
        raise ValueError(f"deformable_convolve: {c} channels, {groups} groups, kernel of side {size}")
    exact = jnp.promote_types(x.dtype, jnp.float32)
    maps = x.astype(exact).reshape(b, h, w, groups, c // groups)
    rows, columns = (jnp.arange(side, dtype=exact)[:, None] * stride for side in (height, width))
    steps = jnp.asarray((np.indices((size, size)).reshape(2, -1).T - size // 2) * dilation, exact)

    @jax.checkpoint
    def tap(
        step: Float[Array, "2"],
        offset: Float[Array, "b H W g 2"],
        mask: Float[Array, "b H W g"],
        matrix: Float[Array, "c d"],
    ) -> Float[Array, "b H W d"]:
        offset = offset.astype(exact)
        sampled = _sample(maps, rows[:, None] + step[0] + offset[..., 0], columns + step[1] + offset[..., 1])
        sampled = (sampled * mask.astype(exact)[..., None]).astype(x.dtype)
        return jnp.dot(sampled.reshape(b, height, width, c), matrix).astype(exact)

    taps = (
        steps,
        jnp.moveaxis(offsets, 4, 0),
        jnp.moveaxis(masks, 4, 0),
        kernel.astype(x.dtype).reshape(-1, c, d),
    )
    total, _ = lax.scan(
        lambda total, one: (total + tap(*one), None), jnp.zeros((b, height, width, d), exact), taps
    )
    return total.astype(x.dtype)


def _expect(name: str, array: Array, shape: tuple[Side, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"deformable_convolve: {name} of shape {array.shape}: want {shape}")


def _sample(
    x: Float[Array, "b h w g c"], y_at: Float[Array, "b H W g"], x_at: Float[Array, "b H W g"]
) -> Float[Array, "b H W g c"]:
    """Bilinear samples of every group at its own positions; x is zero outside of itself."""
    b, h, w, groups, c = x.shape
    table, group = x.reshape(b, h * w * groups, c), np.arange(groups)
    top, left = jnp.floor(y_at), jnp.floor(x_at)
    down, right = y_at - top, x_at - left
    total = jnp.zeros((*y_at.shape, c), x.dtype)
    for row, row_weight in ((top, 1 - down), (top + 1, down)):
        for column, column_weight in ((left, 1 - right), (left + 1, right)):
            inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
            weight = jnp.where(inside, row_weight * column_weight, 0)
            # Clipped as floats: far-off positions do not fit into an integer.
            cell = jnp.clip(row, 0, h - 1).astype(jnp.int32) * w + jnp.clip(column, 0, w - 1).astype(
                jnp.int32
            )
            corner = jax.vmap(lambda rows, index: rows.at[index].get(mode="promise_in_bounds"))
            total = total + corner(table, cell * groups + group) * weight[..., None]
    return total


class DeformableConv(nn.Module):
    """A 3x3 `deformable_convolve` whose offsets and masks a 3x3 convolution computes from another feature.

    That convolution starts at zero: the offsets are then zero and the masks, sigmoids, one half. Both
    convolutions have a bias, as published.

    Attributes:
        features: output channels.
        groups: of channels with offsets and masks of their own; divides the input's channels.
        dtype: of the computation and the result; offsets and masks are used in float32.
    """

    features: int
    groups: int = 8
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], guide: Float[Array, "b h w e"]
    ) -> Float[Array, "b h w features"]:
        kernel = self.param("kernel", deformable_init, (3, 3, x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        predict = Conv(
            27 * self.groups,
            3,
            use_bias=True,
            kernel_init=nn.initializers.zeros,
            dtype=self.dtype,
            name="offsets_and_masks",
        )
        predicted = predict(guide).astype(jnp.promote_types(self.dtype, jnp.float32))
        offsets, masks = jnp.split(predicted, [18 * self.groups], axis=-1)
        y = deformable_convolve(
            x.astype(self.dtype),
            offsets.reshape(*offsets.shape[:3], self.groups, 9, 2),
            nn.sigmoid(masks).reshape(*masks.shape[:3], self.groups, 9),
            kernel.astype(self.dtype),
        )
        return y + bias.astype(self.dtype)
