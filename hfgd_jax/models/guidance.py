"""Class tokens: the 1x1 classifier that the guide branch trains and the upsampler borrows (spec 1, 1.1)."""

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
    """Holds the tokens; `classify` uses them. Who may train them is the segmenter's decision.

    They start Glorot-uniform, as the public code's: nearly orthogonal, and so apart. Drawn close together
    (such as from N(0, 0.01)) they grow out of one point, and rare classes stay inside the others' hull
    (docs/readings.md).

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
