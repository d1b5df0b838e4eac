"""Self-attention, with or without CAR on it ("SA" and "SA (CAR)" of the paper's Table 1)."""

from functools import partial

import flax.linen as nn
from jaxtyping import Array, Float

from hfgd_jax.models.attention import SelfAttention
from hfgd_jax.models.context.base import ContextEncoder, Encoded
from hfgd_jax.models.layers import Conv, ConvNormRelu


class SelfAttentionEncoder(ContextEncoder):
    """3x3 conv to `context_channels`, self-attention with a residual, (CAR's 1x1 linear,) 1x1 conv-norm-ReLU.

    Attributes:
        car: adds the 1x1 linear layer (bias, no norm, no activation) that the CAR losses regularise.
    """

    car: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Encoded:
        x = ConvNormRelu(self.context_channels, 3, self.bn, self.dtype, name="conv")(x, train)
        return attend_and_project(self, x, train, car=self.car)


def attend_and_project(
    encoder: ContextEncoder, x: Float[Array, "b h w c"], train: bool, *, car: bool
) -> Encoded:
    """The part that SA, SA(CAR) and CAE share; its layers belong to `encoder`, within its compact call."""
    x = x + SelfAttention(
        encoder.query_channels,
        encoder.context_channels,
        encoder.scale_attention,
        encoder.attention_bias,
        encoder.dtype,
        encoder.attention_equal_start,
        name="attention",
        parent=encoder,
    )(x)
    features = None
    if car:
        features = x = Conv(
            encoder.context_channels,
            1,
            use_bias=True,
            dtype=encoder.dtype,
            name="car_linear",
            parent=encoder,
        )(x)
    out = ConvNormRelu(
        encoder.channels, 1, encoder.bn, encoder.dtype, signed=encoder.signed, name="out", parent=encoder
    )
    return Encoded(out(x, train), features)


SelfAttentionCarEncoder = partial(SelfAttentionEncoder, car=True)
