"""The convolution's own gradient, summed over groups of images, against that of the plain convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from hfgd_jax.models import layers


def plain(x, kernel, stride, dilation):
    pad = (kernel.shape[0] // 2) * dilation
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((pad, pad), (pad, pad)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@pytest.mark.parametrize(
    ("shape", "size", "stride", "dilation"),
    [
        ((3, 53, 61, 2), 3, 1, 1),  # an image is more than a group
        ((6, 25, 25, 3), 3, 1, 1),  # groups of 4, the last of 2
        ((5, 41, 40, 3), 3, 2, 1),
        ((5, 33, 33, 2), 3, 1, 4),
        ((2, 65, 49, 3), 7, 2, 1),
    ],
)
def test_gradients_equal_the_plain_convolutions(shape, size, stride, dilation):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], shape)
    kernel = jax.random.normal(keys[1], (size, size, shape[-1], 4))

    def loss(convolution, x, kernel):
        y = convolution(x, kernel, stride, dilation)
        return jnp.sum(y * jax.random.normal(keys[2], y.shape))

    got = jax.jit(jax.value_and_grad(lambda x, k: loss(layers.convolve, x, k), (0, 1)))(x, kernel)
    want = jax.jit(jax.value_and_grad(lambda x, k: loss(plain, x, k), (0, 1)))(x, kernel)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


def test_an_accelerator_gets_one_convolution_for_the_kernels_gradient():
    def convolutions(platform):
        gradient = jax.jit(jax.grad(lambda k, x: jnp.sum(layers.convolve(x, k, 1, 1) ** 2)))
        arguments = (
            jax.ShapeDtypeStruct((3, 3, 2, 4), jnp.float32),
            jax.ShapeDtypeStruct((6, 53, 61, 2), jnp.float32),
        )
        text = jax.export.export(gradient, platforms=[platform])(*arguments).mlir_module()
        return text.count("stablehlo.convolution")

    assert convolutions("tpu") == convolutions("cuda") == 2
    assert convolutions("cpu") == 1 + 6
