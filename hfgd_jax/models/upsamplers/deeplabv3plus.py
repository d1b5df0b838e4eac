"""DeepLabV3+'s decoder (Chen et al. 2018; paper, Table 8)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from hfgd_jax.geometry import resize
from hfgd_jax.models.layers import ConvNormRelu
from hfgd_jax.models.upsamplers.base import Upsampler

LOW_LEVEL_CHANNELS = 48


class DeepLabV3Plus(Upsampler):
    """Level 4, narrowed to 48 channels, beside level 32, resized to OS=4; two 3x3 conv-norm-ReLU.

    ASPP on f32 is the context encoder (`context="aspp"`). Levels 8 and 16 are not read. Where level 32 is not
    `channels` wide (no context encoder) a 1x1 `lateral_32` makes it so before it is resized (reading). The
    3x3 convolutions are full ones, as in the paper's own text; public code has them depthwise separable for
    some backbones (reading). The output stride is that of level 4.
    """

    @nn.compact
    def __call__(
        self, pyramid: dict[int, Float[Array, "b _ _ _"]], train: bool
    ) -> Float[Array, "b h w channels"]:
        low, high = pyramid[4], pyramid[32]
        low = self._conv(LOW_LEVEL_CHANNELS, 1, "low_level")(low, train)
        if high.shape[-1] != self.channels:
            high = self._conv(self.channels, 1, "lateral_32")(high, train)
        high = resize(high, low.shape[1:3], geometry=self.geometry)
        x = self._conv(self.channels, 3, "refine_1")(jnp.concatenate([low, high], axis=-1), train)
        return self._conv(self.channels, 3, "refine_2", self.signed)(x, train)

    def _conv(self, features: int, kernel_size: int, name: str, signed: bool = False) -> ConvNormRelu:
        return ConvNormRelu(features, kernel_size, self.bn, self.dtype, signed=signed, name=name)
