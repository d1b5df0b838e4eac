"""The interface of the upsamplers."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from hfgd_jax.geometry import Geometry
from hfgd_jax.models.layers import BatchNorm


class Upsampler(nn.Module):
    """Base: `__call__({4, 8, 16, 32: [B, h, w, c]}, train) -> low [B, h, w, channels]` at `output_stride`.

    Level 32 is the backbone's last feature, or the context encoder's where there is one.

    Attributes:
        channels: of the low feature.
        output_stride: of the low feature.
        geometry: how maps are resized.
        bn: decay and epsilon of the batch normalisation.
        dtype: of the computation.
        signed: the low feature ends without a ReLU.
    """

    channels: int = 256
    output_stride: int = 4
    geometry: Geometry = "align_corners"
    bn: BatchNorm = BatchNorm()
    dtype: Any = jnp.float32
    signed: bool = False
