"""CAE, the context-augmented encoder (paper, Sec. 3.2)."""

import flax.linen as nn
from jaxtyping import Array, Float

from hfgd_jax.models.context.base import ContextEncoder, Encoded
from hfgd_jax.models.context.self_attention import attend_and_project
from hfgd_jax.models.layers import ConvNormRelu


class ContextAugmentedEncoder(ContextEncoder):
    """1x1 conv to `wide_channels`, 1x1 conv to `context_channels`, self-attention with a residual, CAR's 1x1
    linear layer, 1x1 conv-norm-ReLU to `channels`. Each conv has a norm and a ReLU (reading); the CAR layer,
    as in the public CAR code, has neither.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Encoded:
        x = ConvNormRelu(self.wide_channels, 1, self.bn, self.dtype, name="wide")(x, train)
        x = ConvNormRelu(self.context_channels, 1, self.bn, self.dtype, name="narrow")(x, train)
        return attend_and_project(self, x, train, car=True)
