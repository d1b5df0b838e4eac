"""Attention along the axes (paper, Sec. 3.1) and over all positions (in the encoders of paper, Sec. 3.2).

Query and key may start with the same kernel, as in the public code (docs/readings.md).
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hfgd_jax.models.layers import BatchNorm, Conv, ConvNormRelu, glorot_init


class AxialAttention(nn.Module):
    """Attention along height, then along width, each with a residual; then one 1x1 convolution and norm.

    Each axis has its own 1x1 query, key and value projections and scaled dot products. The softmax is
    float32. In training an axis' attention map is computed again in the backward pass, so that only one is
    in memory at a time.

    Attributes:
        channels: of the input, the projections and the output.
        heads: divides `channels`.
        bn: decay and epsilon of the batch normalisation.
        dtype: of the computation and the result.
        signed: no ReLU follows, as in the public code (docs/readings.md).
        start: the value kernels start Glorot-uniform times this: at first, attention adds little.
        equal_start: query and key start with the same kernel, as in the public code.
    """

    channels: int = 256
    heads: int = 4
    bn: BatchNorm = BatchNorm()
    dtype: Any = jnp.float32
    signed: bool = True
    start: float = 1.0
    equal_start: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        x = x.astype(self.dtype)
        x = x + self._along_width(x.swapaxes(1, 2), "height", train).swapaxes(1, 2)
        x = x + self._along_width(x, "width", train)
        return ConvNormRelu(self.channels, 1, self.bn, self.dtype, signed=self.signed, name="out")(x, train)

    def _along_width(self, x: Float[Array, "b h w c"], name: str, train: bool) -> Float[Array, "b h w c"]:
        """Every row of pixels attends within itself."""
        b, h, w, c = x.shape
        init = _same_each_time(self) if self.equal_start else glorot_init
        small = nn.initializers.variance_scaling(self.start**2, "fan_avg", "uniform")
        query, key, value = (
            _project(c, f"{name}_{part}", self.dtype, start)(x).reshape(b * h, w, self.heads, c // self.heads)
            for part, start in (("query", init), ("key", init), ("value", small))
        )
        attend = jax.checkpoint(jax.nn.dot_product_attention) if train else jax.nn.dot_product_attention
        return attend(query, key, value).reshape(b, h, w, c)


class SelfAttention(nn.Module):
    """Attention of every position to every other, one head; no residual.

    Query and key are narrower than the value, which `jax.nn.dot_product_attention` does not take; so it is
    written out here, with float32 logits and softmax.

    Attributes:
        query_channels: of query and key.
        value_channels: of the value, and so of the output.
        scale: divide the logits by sqrt(query_channels); off is a reading (docs/readings.md).
        bias: query, key and value have biases, as in the public code. A key's changes nothing, as the
            softmax cancels it; a query's does.
        dtype: of the computation and the result.
        equal_start: query and key start with the same kernel, as in the public code.
    """

    query_channels: int = 64
    value_channels: int = 512
    scale: bool = False
    bias: bool = False
    dtype: Any = jnp.float32
    equal_start: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w v"]:
        b, h, w, _ = x.shape
        init = _same_each_time(self) if self.equal_start else glorot_init
        query, key, value = (
            _project(channels, name, self.dtype, start, self.bias)(x).reshape(b, h * w, channels)
            for name, channels, start in (
                ("query", self.query_channels, init),
                ("key", self.query_channels, init),
                ("value", self.value_channels, glorot_init),
            )
        )
        logits = jnp.einsum("btc,bsc->bts", query, key, preferred_element_type=jnp.float32)
        if self.scale:
            logits = logits / math.sqrt(self.query_channels)
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        return jnp.einsum("bts,bsc->btc", weights, value).reshape(b, h, w, self.value_channels)


def _same_each_time(module: nn.Module) -> nn.initializers.Initializer:
    """An initialiser that gives every layer of one shape the same kernel."""
    if not module.is_initializing():
        return glorot_init
    key = module.make_rng("params")
    return lambda _, shape, dtype: glorot_init(key, shape, dtype)


def _project(
    channels: int, name: str, dtype: Any, init: nn.initializers.Initializer, bias: bool = False
) -> Conv:
    """A 1x1 projection."""
    return Conv(channels, 1, use_bias=bias, kernel_init=init, dtype=dtype, name=name)
