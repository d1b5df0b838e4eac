"""Convolutions, normalisation, pooling and their usual combinations; NHWC.

Parameters and running statistics are float32 whatever the compute dtype.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from hfgd_jax.models.convolutions import convolve, depthwise_convolve, pointwise_convolve

he_init = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")  # before a ReLU
he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
glorot_init = nn.initializers.glorot_uniform()  # the decoder, as in the public code (docs/readings.md)


class Conv(nn.Module):
    """A square convolution with symmetric padding, so that stride s keeps samples 0, s, 2s, ...

    A 1x1 convolution is a matrix product over the channels (a stride slices first): on a CPU it is three
    times as fast as the convolution. Its kernel is `[in, out]`, the others' `[k, k, in, out]`.

    Attributes:
        features: output channels.
        kernel_size: odd.
        stride, dilation: along both axes.
        use_bias: adds a float32 parameter `bias`.
        kernel_init: the initialiser; Glorot's, the decoder's, by default.
        dtype: of the computation and the result.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    use_bias: bool = False
    kernel_init: nn.initializers.Initializer = glorot_init
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W features"]:
        k, s = self.kernel_size, self.stride
        shape = (x.shape[-1], self.features) if k == 1 else (k, k, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        x = x.astype(self.dtype)
        if k == 1:
            y = pointwise_convolve(x if s == 1 else x[:, ::s, ::s], kernel)
        else:
            y = convolve(x, kernel, s, self.dilation)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype)
        return y


class DepthwiseConv(nn.Module):
    """`depthwise_convolve` with a kernel `[k, k, 1, c]`.

    Attributes:
        kernel_size: odd.
        dilation: along both axes.
        kernel_init: the initialiser.
        dtype: of the computation and the result.
        stride: along both axes; samples 0, s, 2s, ... stay.
        use_bias: adds a float32 parameter `bias`.
    """

    kernel_size: int = 3
    dilation: int = 1
    kernel_init: nn.initializers.Initializer = he_init
    dtype: Any = jnp.float32
    stride: int = 1
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W c"]:
        k, c = self.kernel_size, x.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (k, k, 1, c), jnp.float32).astype(self.dtype)
        y = depthwise_convolve(x.astype(self.dtype), kernel, self.stride, self.dilation)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (c,), jnp.float32)
            y = y + bias.astype(self.dtype)
        return y


class PatchConv(nn.Module):
    """A convolution of size k at stride k, or at stride 1 where the stride was dilated away; with a bias.

    At stride k it sees whole patches: what is left over at the bottom and right is not used. At stride 1
    the input is padded with zeros to keep the size, with one more after than before where their number is
    odd. Either way it is one matrix product over the patches.

    Attributes:
        features: output channels.
        size: k.
        stride: `size` or 1.
        dilation: at stride 1 only.
        kernel_init: the initialiser.
        dtype: of the computation and the result.
    """

    features: int
    size: int
    stride: int
    dilation: int = 1
    kernel_init: nn.initializers.Initializer = he_init
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W features"]:
        k, c = self.size, x.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (k, k, c, self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x = x.astype(self.dtype)
        patches = self._whole(x) if self.stride == k else self._every(x)
        y = jnp.dot(patches, kernel.astype(self.dtype).reshape(k * k * c, self.features))
        return y + bias.astype(self.dtype)

    def _whole(self, x: Array) -> Array:
        (b, h, w, c), k = x.shape, self.size
        x = x[:, : h // k * k, : w // k * k].reshape(b, h // k, k, w // k, k, c)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // k, w // k, k * k * c)

    def _every(self, x: Array) -> Array:
        (h, w), k, d = x.shape[1:3], self.size, self.dilation
        before, after = (k - 1) * d // 2, (k - 1) * d - (k - 1) * d // 2
        x = jnp.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
        taps = [x[:, a * d : a * d + h, b * d : b * d + w] for a in range(k) for b in range(k)]
        return jnp.concatenate(taps, -1)


class BatchNorm(NamedTuple):
    """Settings of batch normalisation: `decay` of the running statistics, and `epsilon`.

    The decoder's epsilon is the paper's setting; a backbone has its source's.
    """

    decay: float = 0.9997
    epsilon: float = 1e-3


def batch_norm(train: bool, bn: BatchNorm, *, dtype: Any, name: str) -> nn.BatchNorm:
    """Batch normalisation whose statistics are float32 and, under jit, those of the global batch."""
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=bn.decay,
        epsilon=bn.epsilon,
        dtype=dtype,
        force_float32_reductions=True,
        name=name,
    )


def layer_norm(*, dtype: Any, name: str, epsilon: float = 1e-6) -> nn.LayerNorm:
    """Layer normalisation over the channels, with float32 statistics (the variance of the centred values)."""
    return nn.LayerNorm(epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name)


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b H W c"]:
    """3x3 maximum at stride 2, padded by one with -inf; along one axis, then the other.

    Written with slices: the gradient of a window reduction is three times as slow on a CPU. Where pixels of
    a window tie, they share the gradient.
    """
    for axis in (1, 2):
        size = (x.shape[axis] - 1) // 2 + 1
        padding = [(1, 1) if a == axis else (0, 0) for a in range(4)]
        padded = jnp.pad(x, padding, constant_values=-jnp.inf)
        first, middle, last = (
            lax.slice_in_dim(padded, start, start + 2 * size - 1, 2, axis) for start in range(3)
        )
        x = jnp.maximum(jnp.maximum(first, middle), last)
    return x


def average_pool(x: Float[Array, "b h w c"], stride: int) -> Float[Array, "b H W c"]:
    """2x2 mean.

    At stride 2 a window that exceeds the edge is the mean of what is inside (torch's `ceil_mode` without
    `count_include_pad`). At stride 1 the size stays, and windows at the bottom and right include zeros (as
    in timm where the stride was dilated away).
    """
    for axis in (1, 2):
        size = x.shape[axis]
        after = 1 if stride == 1 else size % 2
        padding = [(0, after) if a == axis else (0, 0) for a in range(4)]
        x = jnp.pad(x, padding, mode="constant" if stride == 1 else "edge")
        last = x.shape[axis] - 1
        first, second = (lax.slice_in_dim(x, i, last + i, stride, axis) for i in range(2))
        x = (first + second) * 0.5
    return x


class ConvNormRelu(nn.Module):
    """`Conv` without bias, batch normalisation and ReLU.

    Attributes:
        features, kernel_size, dilation: of the convolution.
        bn: decay and epsilon of the batch normalisation.
        dtype: of the computation and the result.
        signed: leaves the ReLU out, so that the result may be negative.
    """

    features: int
    kernel_size: int = 3
    bn: BatchNorm = BatchNorm()
    dtype: Any = jnp.float32
    dilation: int = 1
    signed: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w features"]:
        x = Conv(self.features, self.kernel_size, dilation=self.dilation, dtype=self.dtype, name="conv")(x)
        x = batch_norm(train, self.bn, dtype=self.dtype, name="norm")(x)
        return x if self.signed else nn.relu(x)
