"""The interface of the context encoders (the paper's "extra encoding")."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from hfgd_jax.geometry import Geometry
from hfgd_jax.models.layers import BatchNorm


class Encoded(NamedTuple):
    """The result of an encoder.

    Attributes:
        high: the high-level feature, `channels` wide.
        car_features: what the CAR losses regularise.
        region_logits: of OCR's soft object regions, which have a loss of their own; float32.
    """

    high: Float[Array, "b h w c"]
    car_features: Float[Array, "b h w d"] | None = None
    region_logits: Float[Array, "b h w k"] | None = None


class ContextEncoder(nn.Module):
    """Base of the encoders: `__call__(f32, train) -> Encoded`, at the size of `f32` and in `dtype`.

    Attributes:
        channels: of the high-level feature.
        context_channels: inner width: FCN convolution, attention value, CAR linear layer.
        query_channels: of query and key.
        wide_channels: of the CAE's wide linear layer.
        num_classes: of the data set, for soft object regions.
        output_stride: of `f32`, for atrous rates.
        geometry: how maps are resized.
        scale_attention: divide self-attention's logits by sqrt(query_channels).
        attention_bias: self-attention's query, key and value have biases.
        attention_equal_start: self-attention's query and key start with the same kernel.
        bn: decay and epsilon of the batch normalisation.
        dtype: of the computation.
        signed: the high-level feature ends without a ReLU.
    """

    channels: int = 256
    context_channels: int = 512
    query_channels: int = 64
    wide_channels: int = 2048
    num_classes: int = 1
    output_stride: int = 32
    geometry: Geometry = "align_corners"
    scale_attention: bool = False
    attention_bias: bool = False
    attention_equal_start: bool = False
    bn: BatchNorm = BatchNorm()
    dtype: Any = jnp.float32
    signed: bool = False
