"""Convolutions with gradients of their own against plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from hfgd_jax.models import convolutions


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


@pytest.fixture
def one_device(monkeypatch):
    """Groups are for a CPU that is one device; tests run on eight."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)


@pytest.mark.usefixtures("one_device")
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

    got = jax.jit(jax.value_and_grad(lambda x, k: loss(convolutions.convolve, x, k), (0, 1)))(x, kernel)
    want = jax.jit(jax.value_and_grad(lambda x, k: loss(plain, x, k), (0, 1)))(x, kernel)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


@pytest.mark.usefixtures("one_device")
def test_an_accelerator_gets_one_convolution_for_the_kernels_gradient():
    def count(platform):
        gradient = jax.jit(jax.grad(lambda k, x: jnp.sum(convolutions.convolve(x, k, 1, 1) ** 2)))
        arguments = (
            jax.ShapeDtypeStruct((3, 3, 2, 4), jnp.float32),
            jax.ShapeDtypeStruct((6, 53, 61, 2), jnp.float32),
        )
        text = jax.export.export(gradient, platforms=[platform])(*arguments).mlir_module()
        return text.count("stablehlo.convolution")

    assert count("tpu") == count("cuda") == 2
    assert count("cpu") == 1 + 6


def test_several_cpu_devices_get_one_convolution_too():
    """Groups of images would be cut across the devices that hold them."""
    x, kernel = jnp.ones((6, 53, 61, 2)), jnp.ones((3, 3, 2, 4))
    gradient = jax.jit(jax.grad(lambda k: jnp.sum(convolutions.convolve(x, k, 1, 1) ** 2)))
    assert gradient.lower(kernel).as_text().count("stablehlo.convolution") == 2


def depthwise(x, kernel, stride, dilation):
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


@pytest.mark.parametrize(
    ("devices", "shape", "size", "stride", "dilation", "dtype"),
    [
        (1, (2, 9, 11, 3), 7, 1, 1, "float32"),
        (8, (2, 5, 17, 2), 7, 1, 4, "float32"),  # most taps see the padding alone
        (1, (2, 9, 10, 3), 3, 2, 1, "float32"),
        (8, (2, 10, 9, 3), 5, 2, 1, "float32"),
        (1, (2, 9, 10, 3), 3, 2, 2, "float32"),  # no tap reaches every second pixel
        (1, (2, 6, 5, 3), 3, 1, 2, "bfloat16"),
    ],
)
def test_depthwise_convolution_equals_the_grouped_one(
    devices, shape, size, stride, dilation, dtype, monkeypatch
):
    """With one device, which goes image by image, and several."""
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], shape).astype(dtype)
    kernel = jax.random.normal(keys[1], (size, size, 1, shape[-1])).astype(dtype)
    weight = jax.random.normal(keys[2], depthwise(x, kernel, stride, dilation).shape)

    def run(convolution, *arguments):
        return jax.value_and_grad(lambda x, k: jnp.sum(convolution(x, k, stride, dilation) * weight), (0, 1))(
            *arguments
        )

    tolerance = 1e-5 if dtype == "float32" else 1e-2
    got = jax.jit(lambda x, k: run(convolutions.depthwise_convolve, x, k))(x, kernel)
    want = run(depthwise, x.astype(jnp.float32), kernel.astype(jnp.float32))
    assert [leaf.dtype for leaf in got[1]] == [jnp.dtype(dtype)] * 2
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=0, atol=tolerance * np.abs(b).max())


def test_an_accelerator_gets_grouped_convolutions():
    def text(platform):
        gradient = jax.jit(
            jax.grad(lambda x, k: jnp.sum(convolutions.depthwise_convolve(x, k, 1, 1) ** 2), (0, 1))
        )
        arguments = (
            jax.ShapeDtypeStruct((2, 9, 9, 4), jnp.float32),
            jax.ShapeDtypeStruct((7, 7, 1, 4), jnp.float32),
        )
        return jax.export.export(gradient, platforms=[platform])(*arguments).mlir_module()

    for platform in ("tpu", "cuda"):
        assert text(platform).count("stablehlo.convolution") == 3
        assert text(platform).count("feature_group_count = 4") == 2  # the third has groups of the batch
        assert "stablehlo.while" not in text(platform)
    assert "stablehlo.convolution" not in text("cpu")


def test_pointwise_convolution_has_the_gradients_of_the_product():
    rng = np.random.default_rng(0)
    x, kernel, weight = (
        jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 3, 4, 5), (5, 6), (2, 3, 4, 6))
    )
    own, plain = (
        jax.grad(lambda x, kernel, f=f: jnp.sum(weight * f(x, kernel)), (0, 1))(x, kernel)
        for f in (convolutions.pointwise_convolve, jnp.dot)
    )
    for one, other in zip(own, plain, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
