"""Convolutions as functions, with gradients that are fast on a CPU; NHWC, kernels HWIO.

An accelerator gets XLA's own convolutions, forward and backward.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k c d"], stride: int, dilation: int
) -> Float[Array, "b H W d"]:
    """A convolution with symmetric padding.

    On a single CPU device its kernel's gradient is summed over small groups of images: XLA's convolution for
    it is two to four times slower once the positions it sums over exceed the cache. On several devices
    (tests, pods on one machine) it is not: each has few images, and groups would cross device borders.
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
    if jax.device_count() > 1:
        return image_gradient, kernel_gradient(x, gradient)
    return image_gradient, lax.platform_dependent(x, gradient, cpu=by_groups, default=kernel_gradient)


convolve.defvjp(_convolve_forward, _convolve_backward)
_GROUP_POSITIONS = 2500  # of the output, in one group


@jax.custom_vjp
def pointwise_convolve(x: Float[Array, "b h w c"], kernel: Float[Array, "c d"]) -> Float[Array, "b h w d"]:
    """A 1x1 convolution, as a matrix product over the channels.

    Its kernel's gradient is the product of x and the gradient, in this order: JAX's own is the other way
    round, for which XLA transposes the gradient; on a CPU that takes longer than the product.
    """
    return jnp.dot(x, kernel)


def _pointwise_forward(x: Array, kernel: Array) -> tuple[Array, tuple]:
    return pointwise_convolve(x, kernel), (x, kernel)


def _pointwise_backward(saved: tuple, gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    positions = tuple(range(x.ndim - 1))
    return jnp.dot(gradient, kernel.T), lax.dot_general(x, gradient, ((positions, positions), ((), ())))


pointwise_convolve.defvjp(_pointwise_forward, _pointwise_backward)


def _depthwise_by_groups(x: Array, kernel: Array, stride: int, dilation: int) -> Array:
    pad = (kernel.shape[0] // 2) * dilation
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((pad, pad), (pad, pad)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


@functools.partial(jax.jit, static_argnames=("stride", "dilation"))  # traced once for all layers of a shape
def _depthwise_by_taps(x: Array, kernel: Array, stride: int, dilation: int) -> Array:
    (b, h, w, c), k = x.shape, kernel.shape[0]
    height, width = (h - 1) // stride + 1, (w - 1) // stride + 1
    padded, kernel = _padded_float32(x, k, dilation), kernel.astype(jnp.float32)
    total = jnp.zeros((b, height, width, c), jnp.float32)
    for i, j in ((i, j) for i in range(k) for j in range(k)):
        top, left = i * dilation, j * dilation
        ends = (b, top + (height - 1) * stride + 1, left + (width - 1) * stride + 1, c)
        total += lax.slice(padded, (0, top, left, 0), ends, (1, stride, stride, 1)) * kernel[i, j, 0]
    return total.astype(x.dtype)


@functools.partial(jax.jit, static_argnames=("size", "stride", "dilation"))
def _depthwise_image_gradient_by_taps(
    gradient: Array, kernel: Array, size: tuple[int, int], stride: int, dilation: int
) -> Array:
    """Of an image of `size`: each of its stride^2 phases is a sum over the taps that reach it."""
    (b, h, w, c), k, pad = gradient.shape, kernel.shape[0], (kernel.shape[0] // 2) * dilation
    reach, kernel = (pad + stride - 1) // stride, kernel.astype(jnp.float32)
    padded = jnp.pad(gradient.astype(jnp.float32), ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    # Of each phase: the taps, and where each one's products start in `padded`.
    offsets = [[(i, phase + pad - i * dilation) for i in range(k)] for phase in range(stride)]
    reached = [[(i, reach + o // stride) for i, o in row if o % stride == 0] for row in offsets]

    def phase(rows: list[tuple[int, int]], columns: list[tuple[int, int]]) -> Array:
        total = jnp.zeros(gradient.shape, jnp.float32)
        for (i, top), (j, left) in itertools.product(rows, columns):
            total += lax.slice(padded, (0, top, left, 0), (b, top + h, left + w, c)) * kernel[i, j, 0]
        return total.astype(gradient.dtype)

    if stride == 1:
        return phase(reached[0], reached[0])
    lines = [jnp.stack([phase(rows, columns) for columns in reached], 3) for rows in reached]
    whole = jnp.stack(lines, 2).reshape(b, h * stride, w * stride, c)
    return whole[:, : size[0], : size[1]]


@functools.partial(jax.jit, static_argnames=("size", "stride", "dilation", "images"))
def _depthwise_kernel_gradient_by_rows(
    x: Array, gradient: Array, size: int, stride: int, dilation: int, images: int
) -> Array:
    """Of a kernel of `size`: one row of `images` images after another, so that the sums stay in the cache."""
    b, height, width, c = gradient.shape
    padded = _padded_float32(x, size, dilation)
    reach, columns = (size - 1) * dilation + 1, padded.shape[2]

    def add_row(sums: tuple[Array, ...], i: Array) -> tuple[tuple[Array, ...], None]:
        first, row = i // height * images, i % height
        rows = lax.dynamic_slice(padded, (first, row * stride, 0, 0), (images, reach, columns, c))
        weight = lax.dynamic_slice(gradient, (first, row, 0, 0), (images, 1, width, c)).astype(jnp.float32)
        starts = (j * dilation for j in range(size))
        shifted = (rows[:, ::dilation, start : start + (width - 1) * stride + 1 : stride] for start in starts)
        return tuple(s + column * weight for s, column in zip(sums, shifted, strict=True)), None

    zeros = (jnp.zeros((images, size, width, c), jnp.float32),) * size
    sums = lax.scan(add_row, zeros, jnp.arange(b // images * height))[0]
    return jnp.stack([s.sum((0, 2)) for s in sums], 1)[:, :, None].astype(x.dtype)


def _padded_float32(x: Array, size: int, dilation: int) -> Array:
    pad = (size // 2) * dilation
    return jnp.pad(x.astype(jnp.float32), ((0, 0), (pad, pad), (pad, pad), (0, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_convolve(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k 1 c"], stride: int, dilation: int
) -> Float[Array, "b H W c"]:
    """A convolution of each channel by itself, with symmetric padding.

    On a CPU it and its image's gradient are sums of shifted products, and its kernel's gradient one of
    products of rows, all in float32: XLA's grouped convolutions are ten to a hundred times as slow there.
    """
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_depthwise_by_taps, stride=stride, dilation=dilation),
        default=functools.partial(_depthwise_by_groups, stride=stride, dilation=dilation),
    )


def _depthwise_forward(x: Array, kernel: Array, stride: int, dilation: int) -> tuple[Array, tuple]:
    return depthwise_convolve(x, kernel, stride, dilation), (x, kernel)


def _depthwise_backward(stride: int, dilation: int, saved: tuple, gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    steps = {"stride": stride, "dilation": dilation}

    def image_by_groups(gradient: Array, kernel: Array) -> Array:
        plain = functools.partial(_depthwise_by_groups, kernel=kernel, **steps)
        return jax.linear_transpose(plain, x)(gradient)[0]

    def kernel_by_groups(x: Array, gradient: Array) -> Array:
        plain = functools.partial(_depthwise_by_groups, x, **steps)
        return jax.linear_transpose(plain, kernel)(gradient)[0]

    by_taps = functools.partial(_depthwise_image_gradient_by_taps, size=x.shape[1:3], **steps)
    images = 1 if jax.device_count() == 1 else x.shape[0]  # which may lie on several devices
    by_rows = functools.partial(
        _depthwise_kernel_gradient_by_rows, size=kernel.shape[0], images=images, **steps
    )
    return (
        lax.platform_dependent(gradient, kernel, cpu=by_taps, default=image_by_groups),
        lax.platform_dependent(x, gradient, cpu=by_rows, default=kernel_by_groups),
    )


depthwise_convolve.defvjp(_depthwise_forward, _depthwise_backward)
