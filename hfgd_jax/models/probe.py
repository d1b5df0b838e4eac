"""The auxiliary FCN of the paper's Sec. 5.1, which measures how good the backbone's last feature is."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from hfgd_jax.models.context.identity import Identity
from hfgd_jax.models.guidance import ClassTokens, classify
from hfgd_jax.models.layers import BatchNorm


class Probe(nn.Module):
    """An FCN head and classifier of its own on the backbone's last feature.

    Attributes:
        channels, context_channels: of the FCN head.
        num_classes: of the classifier.
        bn: decay and epsilon of the batch normalisation.
        dtype: of the computation; logits are float32.
    """

    channels: int
    context_channels: int
    num_classes: int
    bn: BatchNorm = BatchNorm()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w k"]:
        head = Identity(
            channels=self.channels,
            context_channels=self.context_channels,
            bn=self.bn,
            dtype=self.dtype,
            name="head",
        )
        tokens = ClassTokens(self.channels, self.num_classes, name="tokens")()
        return classify(head(x, train).high, tokens)
