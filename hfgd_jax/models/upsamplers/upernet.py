"""UPerNet's feature pyramid and fusion (Xiao et al. 2018; paper, Table 8)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from hfgd_jax.geometry import resize
from hfgd_jax.models.layers import ConvNormRelu
from hfgd_jax.models.upsamplers.base import Upsampler


class UPerNet(Upsampler):
    """1x1 laterals, a top-down path of sums, 3x3 smoothing, and a 3x3 fusion of all levels at OS=4.

    The pyramid pooling on f32 is the context encoder (`context="ppm"`), whose feature is the top of the path
    and enters the fusion as it is, being `channels` wide. Where level 32 is of another width (no context
    encoder) a 1x1 `lateral_32` makes it so (reading). The fusion concatenates levels 4, 8, 16, 32, in this
    order. Every convolution has a norm and a ReLU. The output stride is that of level 4.
    """

    @nn.compact
    def __call__(
        self, pyramid: dict[int, Float[Array, "b _ _ _"]], train: bool
    ) -> Float[Array, "b h w channels"]:
        top = pyramid[32]
        if top.shape[-1] != self.channels:
            top = self._conv(1, "lateral_32")(top, train)
        merged, levels = top, {32: top}
        for level in (16, 8, 4):
            x = self._conv(1, f"lateral_{level}")(pyramid[level], train)
            merged = x + resize(merged, x.shape[1:3], geometry=self.geometry)
            levels[level] = self._conv(3, f"smooth_{level}")(merged, train)
        size = pyramid[4].shape[1:3]
        maps = [resize(levels[level], size, geometry=self.geometry) for level in sorted(levels)]
        return self._conv(3, "fuse", self.signed)(jnp.concatenate(maps, axis=-1), train)

    def _conv(self, kernel_size: int, name: str, signed: bool = False) -> ConvNormRelu:
        return ConvNormRelu(self.channels, kernel_size, self.bn, self.dtype, signed=signed, name=name)
