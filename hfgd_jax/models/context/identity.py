"""No extra encoding: the head of a basic FCN ("Identity" of the paper's Table 1)."""

import flax.linen as nn
from jaxtyping import Array, Float

from hfgd_jax.models.context.base import ContextEncoder, Encoded
from hfgd_jax.models.layers import ConvNormRelu


class Identity(ContextEncoder):
    """3x3 conv-norm-ReLU to `context_channels`, 1x1 conv-norm-ReLU to `channels`."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Encoded:
        x = ConvNormRelu(self.context_channels, 3, self.bn, self.dtype, name="conv")(x, train)
        out = ConvNormRelu(self.channels, 1, self.bn, self.dtype, signed=self.signed, name="out")
        return Encoded(out(x, train))
