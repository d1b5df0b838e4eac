"""What every upsampler takes and gives."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from hfgd_jax.geometry import Geometry


class Upsampler(nn.Module):
    """Base: `__call__({4, 8, 16, 32: [B, h, w, c]}, train) -> low [B, h, w, channels]` at `output_stride`.

    Level 32 is the backbone's last feature, or the context encoder's where there is one.

    Attributes:
        channels: of the low feature.
        output_stride: of the low feature.
        geometry: how maps are resized.
        decay: of the batch normalisation.
        dtype: of the computation.
    """

    channels: int = 256
    output_stride: int = 4
    geometry: Geometry = "align_corners"
    decay: float = 0.9997
    dtype: Any = jnp.float32
