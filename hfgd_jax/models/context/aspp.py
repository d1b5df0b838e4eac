"""ASPP, atrous spatial pyramid pooling (Chen et al., "Rethinking Atrous Convolution", 2017)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from hfgd_jax.models.context.base import ContextEncoder, Encoded
from hfgd_jax.models.layers import ConvNormRelu

RATES = (3, 6, 9)  # at output stride 32


class AtrousSpatialPyramidPooling(ContextEncoder):
    """Image pooling, a 1x1 and three 3x3 atrous convolutions side by side; concatenation; 1x1 conv-norm-ReLU.

    The rates are 3, 6, 9 times 32 / `output_stride`, so that a branch sees the same part of the image
    whatever the backbone's dilation: 12, 24, 36 at OS=8, as published. Every branch is `channels` wide and
    has a norm and a ReLU; published are 256 each, what `channels` is by default. Dropout, which some public
    code has at the end, is left out (reading).
    """

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Encoded:
        mean = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32)
        pooled = self._conv("image_pool", 1)(mean, train)
        branches = [
            jnp.broadcast_to(pooled, (*x.shape[:3], self.channels)),
            self._conv("conv", 1)(x, train),
        ]
        for i, rate in enumerate(atrous_rates(self.output_stride)):
            branches.append(self._conv(f"atrous_{i + 1}", 3, rate)(x, train))
        out = self._conv("out", 1, signed=self.signed)
        return Encoded(out(jnp.concatenate(branches, axis=-1), train))

    def _conv(self, name: str, kernel_size: int, dilation: int = 1, signed: bool = False) -> ConvNormRelu:
        return ConvNormRelu(self.channels, kernel_size, self.bn, self.dtype, dilation, signed, name=name)


def atrous_rates(output_stride: int) -> tuple[int, ...]:
    """Rates of the three 3x3 convolutions on a feature at `output_stride` (8, 16 or 32)."""
    return tuple(rate * 32 // output_stride for rate in RATES)
