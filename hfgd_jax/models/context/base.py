"""What every context encoder ("extra encoding") takes and gives."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


class Encoded(NamedTuple):
    """`high`: the high-level feature, `channels` wide. `car_features`: what the CAR losses regularise."""

    high: Float[Array, "b h w c"]
    car_features: Float[Array, "b h w d"] | None = None


class ContextEncoder(nn.Module):
    """Base of the encoders: `__call__(f32, train) -> Encoded`, at the size of `f32` and in `dtype`.

    Attributes:
        channels: of the high-level feature.
        context_channels: inner width: FCN convolution, attention value, CAR linear layer.
        query_channels: of query and key.
        wide_channels: of the CAE's wide linear layer.
        scale_attention: divide self-attention's logits by sqrt(query_channels).
        decay: of the batch normalisation.
        dtype: of the computation.
    """

    channels: int = 256
    context_channels: int = 512
    query_channels: int = 64
    wide_channels: int = 2048
    scale_attention: bool = False
    decay: float = 0.9997
    dtype: Any = jnp.float32
