"""Class tokens: the classifier that the guide branch trains and the upsampler borrows (paper, Sec. 3.1)."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from hfgd_jax.models.layers import glorot_init


class Tokens(NamedTuple):
    """Kernel `[channels, classes]` and bias `[classes]`, float32: one set for both branches."""

    kernel: Float[Array, "c k"]
    bias: Float[Array, " k"]


class ClassTokens(nn.Module):
    """Holds the tokens, which `classify` takes. Which losses train them is decided in `segmenter.py`.

    They start Glorot-uniform, as in the public code: nearly orthogonal. Drawn close together (such as from
    N(0, 0.01)) they stay similar, and no feature scores a rare class highest (docs/readings.md).

    Attributes:
        channels: of the features to classify.
        num_classes: how many tokens.
    """

    channels: int
    num_classes: int

    @nn.compact
    def __call__(self) -> Tokens:
        kernel = self.param("kernel", glorot_init, (self.channels, self.num_classes))
        return Tokens(kernel, self.param("bias", nn.initializers.zeros, (self.num_classes,)))


def classify(features: Float[Array, "b h w c"], tokens: Tokens) -> Float[Array, "b h w k"]:
    """Float32 logits of features of any float dtype; products in the features' dtype, summed in float32."""
    kernel = tokens.kernel.astype(features.dtype)
    return jnp.dot(features, kernel, preferred_element_type=jnp.float32) + tokens.bias
