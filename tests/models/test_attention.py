"""Attention against naive NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hfgd_jax.models.attention import AxialAttention, SelfAttention
from hfgd_jax.models.layers import BatchNorm, max_pool


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def naive_axial(params, stats, x, heads):
    """One column, then one row, one head at a time."""
    x = np.asarray(x, np.float64)
    c = x.shape[-1]
    d = c // heads
    for name, lines in (("height", lambda a: a.transpose(0, 2, 1, 3)), ("width", lambda a: a)):
        q, k, v = (
            lines(x @ np.asarray(params[f"{name}_{part}"]["kernel"])) for part in ("query", "key", "value")
        )
        out = np.zeros_like(q)
        for b, line, h in np.ndindex(q.shape[0], q.shape[1], heads):
            s = slice(h * d, (h + 1) * d)
            attention = softmax(q[b, line, :, s] @ k[b, line, :, s].T / np.sqrt(d))
            out[b, line, :, s] = attention @ v[b, line, :, s]
        x = x + lines(out)
    norm, y = params["out"]["norm"], x @ np.asarray(params["out"]["conv"]["kernel"])
    stats = stats["out"]["norm"]
    y = (y - stats["mean"]) / np.sqrt(np.asarray(stats["var"], np.float64) + 1e-3)
    return y * norm["scale"] + norm["bias"]


@pytest.fixture
def axial(model_tools):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 7, 8)), jnp.float32)
    module = AxialAttention(8, 2)
    variables = model_tools.randomize(jax.eval_shape(lambda: module.init(jax.random.key(0), x, False)))
    return module, variables, x


def test_axial_attention_equals_naive(axial):
    module, variables, x = axial
    y = jax.jit(lambda v, x: module.apply(v, x, False))(variables, x)
    np.testing.assert_allclose(y, naive_axial(variables["params"], variables["batch_stats"], x, 2), atol=1e-5)


def test_axial_attention_is_the_same_in_training(axial):
    """Where attention is computed again for the gradient: with the batch's statistics, the same output."""
    _, variables, x = axial
    module = AxialAttention(8, 2, BatchNorm(decay=0.0))
    y, statistics = module.apply(variables, x, True, mutable=["batch_stats"])
    np.testing.assert_allclose(y, module.apply({**variables, **statistics}, x, False), atol=1e-5)


@pytest.mark.parametrize(("scale", "bias"), [(False, False), (True, True)])
def test_self_attention_equals_naive(scale, bias, model_tools):
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 6)).astype(np.float32)
    module = SelfAttention(4, 10, scale, bias)
    variables = model_tools.randomize(jax.eval_shape(module.init, jax.random.key(0), x))
    q, k, v = (
        x.reshape(2, 12, 6) @ np.asarray(layer["kernel"]) + layer.get("bias", 0.0)
        for layer in (variables["params"][part] for part in ("query", "key", "value"))
    )
    expected = np.stack([softmax(q[b] @ k[b].T / (2 if scale else 1)) @ v[b] for b in range(2)])
    y = module.apply(variables, jnp.asarray(x))
    np.testing.assert_allclose(y, expected.reshape(2, 3, 4, 10), atol=1e-5)


def test_query_and_key_may_start_equal_and_values_small():
    x = jnp.zeros((1, 3, 4, 8))
    axial = AxialAttention(8, 2, equal_start=True).init(jax.random.key(0), x, False)["params"]
    whole = SelfAttention(4, 10, equal_start=True).init(jax.random.key(0), x)["params"]
    for params, prefix in ((axial, "height_"), (axial, "width_"), (whole, "")):
        np.testing.assert_array_equal(params[f"{prefix}query"]["kernel"], params[f"{prefix}key"]["kernel"])
    assert np.any(axial["height_query"]["kernel"] != axial["width_query"]["kernel"])
    assert np.any(axial["height_query"]["kernel"] != axial["height_value"]["kernel"])
    small = AxialAttention(8, 2, start=0.25, equal_start=True).init(jax.random.key(0), x, False)["params"]
    np.testing.assert_allclose(
        small["width_value"]["kernel"], 0.25 * axial["width_value"]["kernel"], rtol=1e-6
    )


def test_softmax_is_float32_in_bfloat16(axial):
    """No exponential is taken in bfloat16, by either attention."""
    x = axial[2]
    for module in (AxialAttention(8, 2, dtype=jnp.bfloat16), SelfAttention(4, 10, dtype=jnp.bfloat16)):
        arguments = (x, False) if isinstance(module, AxialAttention) else (x,)
        shapes = jax.eval_shape(lambda m=module, a=arguments: m.init(jax.random.key(0), *a))
        text = str(jax.make_jaxpr(lambda v, m=module, a=arguments: m.apply(v, *a))(shapes))
        exponentials = [line for line in text.splitlines() if "= exp " in line]
        assert exponentials and all(":f32[" in line for line in exponentials)


def test_max_pool_and_its_gradient():
    rng = np.random.default_rng(0)
    for side in (9, 8):
        x = jnp.asarray(-1 - rng.uniform(size=(2, side, side, 3)), jnp.float32)
        window = lambda x: jax.lax.reduce_window(  # noqa: E731
            x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
        )
        y, pull = jax.vjp(max_pool, x)
        expected, pull_expected = jax.vjp(window, x)
        np.testing.assert_array_equal(y, expected)
        g = jnp.asarray(rng.normal(size=y.shape), jnp.float32)
        np.testing.assert_allclose(pull(g)[0], pull_expected(g)[0], atol=1e-6)
