"""FaPN, the feature-aligned pyramid network (Huang et al., ICCV 2021; paper, Table 8)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from hfgd_jax.geometry import resize
from hfgd_jax.models.deformable import DeformableConv
from hfgd_jax.models.layers import Conv, ConvNormRelu
from hfgd_jax.models.upsamplers.base import Upsampler

LEVELS = (4, 8, 16, 32)
GROUPS = 8  # deformable groups


class FeatureSelection(nn.Module):
    """FSM: channels are weighted by attention from their mean, then projected: `conv(x + x * attention)`.

    As published: neither 1x1 convolution has a bias or a norm. The mean over the map is float32.

    Attributes:
        channels: of the result.
        dtype: of the computation and the result.
    """

    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w channels"]:
        x = x.astype(self.dtype)
        summary = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.promote_types(self.dtype, jnp.float32))
        attention = Conv(x.shape[-1], 1, dtype=self.dtype, name="attention")(summary)
        x = x + x * nn.sigmoid(attention)
        return Conv(self.channels, 1, dtype=self.dtype, name="conv")(x)


class FeatureAlign(nn.Module):
    """FAM: a deformable convolution aligns the coarser level, enlarged, with the finer one; both are added.

    Offsets and masks come from a 1x1 convolution (without norm, as published by default) of the finer
    feature beside twice the coarser one; the result is `finer + relu(aligned)`.

    Attributes:
        channels: of both inputs and the result.
        dtype: of the computation and the result.
    """

    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, finer: Float[Array, "b h w c"], coarser: Float[Array, "b h w c"]
    ) -> Float[Array, "b h w c"]:
        both = jnp.concatenate([finer, 2 * coarser], axis=-1)
        guide = Conv(self.channels, 1, dtype=self.dtype, name="guide")(both)
        aligned = DeformableConv(self.channels, GROUPS, self.dtype, name="deformable")(coarser, guide)
        return finer + nn.relu(aligned)


class FaPN(Upsampler):
    """Feature selection in place of laterals, feature alignment in place of the sums of a top-down path.

    Level 32 is taken as it is where it is `channels` wide, as a context encoder's is; otherwise it goes
    through a 1x1 conv-norm-ReLU. Then one 3x3 conv-norm-ReLU per level; all are enlarged to OS=4 and added
    up; 1x1 conv-norm-ReLU. Reading: the published semantic segmentation puts SemanticFPN's head on the
    pyramid, which sums its levels; of that head and of the pyramid's own 3x3 output convolutions, one 3x3
    convolution per level is kept. With a dilated backbone levels of one size are aligned without resizing.

    `channels` must be a multiple of 8, the deformable groups (`config.validate` checks it).
    """

    @nn.compact
    def __call__(
        self, pyramid: dict[int, Float[Array, "b _ _ _"]], train: bool
    ) -> Float[Array, "b h w channels"]:
        merged = pyramid[32].astype(self.dtype)
        if merged.shape[-1] != self.channels:
            merged = self._conv(1, "lateral_32")(merged, train)
        total = None
        for level in reversed(LEVELS):
            if level != 32:
                finer = FeatureSelection(self.channels, self.dtype, name=f"select_{level}")(pyramid[level])
                coarser = resize(merged, finer.shape[1:3], geometry=self.geometry)
                merged = FeatureAlign(self.channels, self.dtype, name=f"align_{level}")(finer, coarser)
            x = self._conv(3, f"branch_{level}")(merged, train)
            x = resize(x, pyramid[4].shape[1:3], geometry=self.geometry)
            total = x if total is None else total + x
        return self._conv(1, "out", self.signed)(total, train)

    def _conv(self, kernel_size: int, name: str, signed: bool = False) -> ConvNormRelu:
        return ConvNormRelu(self.channels, kernel_size, self.bn, self.dtype, signed=signed, name=name)
