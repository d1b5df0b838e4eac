"""Patches, pooling and norms against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hfgd_jax.models import layers


def naive_patches(x, kernel, bias, stride, dilation, before):
    """A convolution one output at a time; positions outside are zero."""
    k, (h, w) = kernel.shape[0], x.shape[:2]
    size = [(side // k if stride > 1 else side) for side in (h, w)]
    y = np.zeros((*size, kernel.shape[-1]))
    for i, j, a, b in np.ndindex(*size, k, k):
        row, column = i * stride + a * dilation - before, j * stride + b * dilation - before
        if 0 <= row < h and 0 <= column < w:
            y[i, j] += x[row, column] @ kernel[a, b]
    return y + bias


@pytest.mark.parametrize(
    ("size", "stride", "dilation", "before"), [(4, 4, 1, 0), (2, 2, 1, 0), (2, 1, 1, 0), (2, 1, 2, 1)]
)
def test_patch_convolution(size, stride, dilation, before):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 9, 11, 3)).astype(np.float32)
    conv = layers.PatchConv(5, size, stride, dilation)
    params = {"kernel": rng.standard_normal((size, size, 3, 5)), "bias": rng.standard_normal(5)}
    assert jax.tree.map(np.shape, params) == jax.tree.map(
        np.shape, jax.eval_shape(conv.init, jax.random.key(0), x)["params"]
    )
    want = naive_patches(x[0].astype(np.float64), **params, stride=stride, dilation=dilation, before=before)
    np.testing.assert_allclose(conv.apply({"params": params}, jnp.asarray(x))[0], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(5, 7), (4, 7), (6, 4)])
def test_average_pool(stride, shape):
    """At stride 2 the mean of what lies inside; at stride 1 zeros below and to the right count in."""
    x = np.random.default_rng(0).standard_normal((1, *shape, 2)).astype(np.float32)
    got = layers.average_pool(jnp.asarray(x), stride)
    height, width = (-(-side // stride) for side in shape)
    assert got.shape == (1, height, width, 2)
    for i, j in np.ndindex(height, width):
        window = x[0, i * stride : i * stride + 2, j * stride : j * stride + 2]
        count = 4 if stride == 1 else window.shape[0] * window.shape[1]
        np.testing.assert_allclose(got[0, i, j], window.sum((0, 1)) / count, rtol=1e-5, atol=1e-6)


def test_layer_norm_of_values_far_from_zero():
    """The variance is that of the centred values, so that float32 holds it."""
    x = 1000 + np.random.default_rng(0).standard_normal((1, 2, 2, 16)).astype(np.float32)
    got = layers.layer_norm(dtype=jnp.float32, name="norm").apply(
        {"params": {"scale": np.ones(16, np.float32), "bias": np.zeros(16, np.float32)}}, x
    )
    x = x.astype(np.float64)
    want = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(got, want, atol=2e-4)
