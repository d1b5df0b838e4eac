"""OCR, object-contextual representations (Yuan et al. 2020)."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hfgd_jax.models.context.base import ContextEncoder, Encoded
from hfgd_jax.models.guidance import ClassTokens, classify
from hfgd_jax.models.layers import ConvNormRelu


class ObjectContext(ContextEncoder):
    """Soft object regions, their features, and every pixel's attention to them.

    1. Pixel features: 3x3 conv-norm-ReLU to `context_channels`.
    2. Soft object regions: an auxiliary FCN head, 3x3 conv-norm-ReLU and a classifier with bias, on the same
       input (reading: published on the stage before, which an encoder here does not get). Its logits have a
       loss of their own; the gradient of the steps below reaches it too, as published.
    3. A region's feature is the mean of the pixel features, weighted by the softmax of the region's logits
       over the positions.
    4. Object attention, `context_channels` / 2 wide: query (pixels) and key (regions) by two 1x1
       conv-norm-ReLU, value by one, softmax over the regions of the scaled dot products, one 1x1
       conv-norm-ReLU back to `context_channels`.
    5. Concatenation of context and pixel features, 1x1 conv-norm-ReLU to `channels`.

    The published dropout of 0.05 is left out (reading).
    """

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Encoded:
        width = (self.context_channels + 1) // 2
        pixels = self._conv(self.context_channels, "pixels", 3)(x, train)
        tokens = ClassTokens(self.context_channels, self.num_classes, name="region_tokens")()
        region_logits = classify(self._conv(self.context_channels, "regions", 3)(x, train), tokens)
        regions = gather_regions(pixels, region_logits)
        query = self._conv(width, "query_2")(self._conv(width, "query_1")(pixels, train), train)
        key = self._conv(width, "key_2")(self._conv(width, "key_1")(regions, train), train)
        value = self._conv(width, "value")(regions, train)
        context = self._conv(self.context_channels, "context")(object_attention(query, key, value), train)
        out = self._conv(self.channels, "out", signed=self.signed)
        high = out(jnp.concatenate([context, pixels], axis=-1), train)
        return Encoded(high, region_logits=region_logits)

    def _conv(self, features: int, name: str, kernel_size: int = 1, signed: bool = False) -> ConvNormRelu:
        return ConvNormRelu(features, kernel_size, self.bn, self.dtype, signed=signed, name=name)


def gather_regions(
    features: Float[Array, "b h w c"], region_logits: Float[Array, "b h w k"]
) -> Float[Array, "b k 1 c"]:
    """Features of the K soft regions: pixel features weighted by a float32 softmax over the positions.

    Returns them in the features' dtype, as a map of K x 1 positions, for convolutions.
    """
    weights = jax.nn.softmax(region_logits.astype(jnp.float32), axis=(1, 2)).astype(features.dtype)
    return jnp.einsum("bhwk,bhwc->bkc", weights, features)[:, :, None]


def object_attention(
    query: Float[Array, "b h w d"], key: Float[Array, "b k 1 d"], value: Float[Array, "b k 1 v"]
) -> Float[Array, "b h w v"]:
    """Each pixel's mean of the K regions' values, weighted by softmax(query . key / sqrt(d)) in float32."""
    logits = jnp.einsum("bhwd,bkd->bhwk", query, key[:, :, 0], preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits / math.sqrt(query.shape[-1]), axis=-1).astype(value.dtype)
    return jnp.einsum("bhwk,bkv->bhwv", weights, value[:, :, 0])
