"""Convolution, batch normalisation and their usual combination; NHWC.

Parameters and running statistics are float32 whatever the compute dtype.
"""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

he_init = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")  # before a ReLU
linear_init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k c d"], stride: int, dilation: int
) -> Float[Array, "b H W d"]:
    """A convolution with symmetric padding.

    On a CPU its kernel's gradient is summed over small groups of images: XLA's convolution for it slows down
    two- to fourfold once the positions it sums over outgrow the cache.
    """
    pad = (kernel.shape[0] // 2) * dilation
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((pad, pad), (pad, pad)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _convolve_forward(x: Array, kernel: Array, stride: int, dilation: int) -> tuple[Array, tuple]:
    return convolve(x, kernel, stride, dilation), (x, kernel)


def _convolve_backward(stride: int, dilation: int, saved: tuple, gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    plain = functools.partial(convolve.fun, stride=stride, dilation=dilation)

    def kernel_gradient(x: Array, gradient: Array) -> Array:
        return jax.linear_transpose(lambda kernel: plain(x, kernel), kernel)(gradient)[0]

    def by_groups(x: Array, gradient: Array) -> Array:
        count = max(1, _GROUP_POSITIONS // math.prod(gradient.shape[1:3]))
        groups = range(0, x.shape[0], count)
        return sum(kernel_gradient(x[i : i + count], gradient[i : i + count]) for i in groups)

    image_gradient = jax.linear_transpose(lambda x: plain(x, kernel), x)(gradient)[0]
    return image_gradient, lax.platform_dependent(x, gradient, cpu=by_groups, default=kernel_gradient)


convolve.defvjp(_convolve_forward, _convolve_backward)
_GROUP_POSITIONS = 2500  # of the output, in one group


class Conv(nn.Module):
    """A square convolution with symmetric padding, so that stride s keeps samples 0, s, 2s, ...

    A 1x1 convolution is a matrix product over the channels (a stride slices first): on a CPU it is three
    times as fast as the convolution. Its kernel is `[in, out]`, the others' `[k, k, in, out]`.

    Attributes:
        features: output channels.
        kernel_size: odd.
        stride, dilation: along both axes.
        use_bias: adds a float32 parameter `bias`.
        kernel_init: the initialiser; He's by default.
        dtype: of the computation and the result.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    use_bias: bool = False
    kernel_init: nn.initializers.Initializer = he_init
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W features"]:
        k, s = self.kernel_size, self.stride
        shape = (x.shape[-1], self.features) if k == 1 else (k, k, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        x = x.astype(self.dtype)
        if k == 1:
            y = jnp.dot(x if s == 1 else x[:, ::s, ::s], kernel)
        else:
            y = convolve(x, kernel, s, self.dilation)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype)
        return y


class BatchNorm(NamedTuple):
    """How a part of the model normalises: `decay` of the running statistics, and `epsilon`.

    The decoder's epsilon is the paper's setting (spec 2); a backbone has its source's.
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


class ConvNormRelu(nn.Module):
    """`Conv` without bias, batch normalisation and ReLU.

    Attributes:
        features, kernel_size, dilation: of the convolution.
        bn: decay and epsilon of the batch normalisation.
        dtype: of the computation and the result.
    """

    features: int
    kernel_size: int = 3
    bn: BatchNorm = BatchNorm()
    dtype: Any = jnp.float32
    dilation: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w features"]:
        x = Conv(self.features, self.kernel_size, dilation=self.dilation, dtype=self.dtype, name="conv")(x)
        x = batch_norm(train, self.bn, dtype=self.dtype, name="norm")(x)
        return nn.relu(x)
