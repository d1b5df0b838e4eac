"""ASPP, PPM and OCR against NumPy in float64, and what every context encoder gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hfgd_jax.models.context import CONTEXTS
from hfgd_jax.models.context.ppm import adaptive_average_pool

GEOMETRIES = ("align_corners", "half_pixel")


def encoder(name, **changes):
    widths = {"channels": 4, "context_channels": 6, "query_channels": 2, "wide_channels": 8}
    return CONTEXTS[name](**widths | {"num_classes": 3} | changes)


def random_example(module, shape, model_tools, seed=0):
    x = jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, False))
    return x, model_tools.randomize(shapes, seed)


@pytest.mark.parametrize("name", CONTEXTS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("size", [(17, 33), (16, 20), (2, 1)])
def test_sizes_and_dtypes(name, geometry, size):
    """A feature of any size keeps it; what losses read is float32, the rest as the computation is."""
    module = encoder(name, geometry=geometry, output_stride=8, dtype=jnp.bfloat16)
    x = jax.ShapeDtypeStruct((2, *size, 5), jnp.bfloat16)
    encoded, variables = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x, True), x)
    assert encoded.high.shape == (2, *size, 4) and encoded.high.dtype == jnp.bfloat16
    assert (encoded.car_features is not None) == (name in ("sa_car", "cae"))
    assert (encoded.region_logits is not None) == (name == "ocr")
    if name == "ocr":
        assert encoded.region_logits.shape == (2, *size, 3) and encoded.region_logits.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize("size, bins", [((7, 10), 6), ((12, 6), 3), ((3, 2), 6), ((17, 16), 2), ((5, 1), 1)])
def test_adaptive_pooling_equals_a_loop(size, bins):
    """Bins that divide the size, that share samples, and that are more than the samples."""
    x = np.random.default_rng(0).normal(size=(2, *size, 3))
    expected = np.zeros((2, bins, bins, 3))
    edges = [
        [(int(np.floor(i * n / bins)), int(np.ceil((i + 1) * n / bins))) for i in range(bins)] for n in size
    ]
    for i, j in np.ndindex(bins, bins):
        (top, bottom), (left, right) = edges[0][i], edges[1][j]
        expected[:, i, j] = x[:, top:bottom, left:right].mean(axis=(1, 2))
    y = adaptive_average_pool(jnp.asarray(x, jnp.float32), bins)
    np.testing.assert_allclose(y, expected, atol=1e-6)
    assert adaptive_average_pool(jnp.asarray(x, jnp.bfloat16), bins).dtype == jnp.bfloat16


@pytest.mark.parametrize("output_stride, rates", [(32, (3, 6, 9)), (16, (6, 12, 18)), (8, (12, 24, 36))])
def test_aspp_equals_naive(output_stride, rates, model_tools, naive):
    module = encoder("aspp", output_stride=output_stride)
    x, variables = random_example(module, (2, 15, 13, 5), model_tools)
    pooled = naive.conv_norm_relu(variables, "image_pool", x.mean(axis=(1, 2), keepdims=True))
    maps = [np.broadcast_to(pooled, (2, 15, 13, 4)), naive.conv_norm_relu(variables, "conv", x)]
    for i, rate in enumerate(rates):
        maps.append(naive.conv_norm_relu(variables, f"atrous_{i + 1}", x, dilation=rate))
    expected = naive.conv_norm_relu(variables, "out", np.concatenate(maps, axis=-1))
    assert expected.max() > 0.1
    np.testing.assert_allclose(module.apply(variables, x, False).high, expected, atol=2e-5)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_ppm_equals_naive(geometry, model_tools, naive):
    module = encoder("ppm", geometry=geometry)
    x, variables = random_example(module, (2, 7, 12, 5), model_tools)
    maps = [x]
    for bins in (1, 2, 3, 6):
        pooled = np.zeros((2, bins, bins, 5))
        for i, j in np.ndindex(bins, bins):
            rows = slice(i * 7 // bins, -(-(i + 1) * 7 // bins))
            pooled[:, i, j] = x[:, rows, j * 12 // bins : (j + 1) * 12 // bins].mean(axis=(1, 2))
        branch = naive.conv_norm_relu(variables, f"branch_{bins}", pooled)
        maps.append(naive.resize(branch, (7, 12), geometry))
    assert [m.shape[-1] for m in maps] == [5, 6, 6, 6, 6]
    expected = naive.conv_norm_relu(variables, "out", np.concatenate(maps, axis=-1))
    assert expected.max() > 0.1
    np.testing.assert_allclose(module.apply(variables, x, False).high, expected, atol=2e-5)


@pytest.mark.parametrize("name", ["aspp", "ppm"])
def test_a_single_image_trains(name, model_tools):
    """A pooled map of one sample has no variance: finite values and gradients all the same."""
    module = encoder(name)
    x, variables = random_example(module, (1, 5, 4, 5), model_tools)

    def loss(params):
        encoded, updated = module.apply({**variables, "params": params}, x, True, mutable=["batch_stats"])
        return jnp.sum(jnp.square(encoded.high)), updated

    (value, updated), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    assert value > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((updated, gradient)))
    assert np.any(gradient["out"]["conv"]["kernel"])


def test_ocr_equals_naive(model_tools, naive):
    """One region and one pixel at a time."""
    module = encoder("ocr")
    x, variables = random_example(module, (2, 4, 5, 5), model_tools)
    params = variables["params"]
    conv = lambda name, x: naive.conv_norm_relu(variables, name, x)  # noqa: E731
    pixels = conv("pixels", x)
    tokens = {key: np.asarray(value, np.float64) for key, value in params["region_tokens"].items()}
    logits = conv("regions", x) @ tokens["kernel"] + tokens["bias"]
    regions = np.zeros((2, 3, 1, 6))
    for b, k in np.ndindex(2, 3):
        weights = naive.softmax(logits[b, :, :, k].ravel(), 0)
        regions[b, k, 0] = weights @ pixels[b].reshape(20, 6)
    query, key = conv("query_2", conv("query_1", pixels)), conv("key_2", conv("key_1", regions))
    value = conv("value", regions)
    assert query.shape[-1] == key.shape[-1] == value.shape[-1] == 3
    context = np.zeros_like(query)
    for b, i, j in np.ndindex(2, 4, 5):
        energy = np.array([query[b, i, j] @ key[b, k, 0] for k in range(3)]) / np.sqrt(3)
        context[b, i, j] = naive.softmax(energy, 0) @ value[b, :, 0]
    expected = conv("out", np.concatenate([conv("context", context), pixels], axis=-1))
    assert np.ptp(logits) > 0.5 and expected.max() > 0.1
    encoded = module.apply(variables, x, False)
    np.testing.assert_allclose(encoded.region_logits, logits, atol=2e-5)
    np.testing.assert_allclose(encoded.high, expected, atol=2e-5)


def test_softmaxes_of_ocr_are_float32_in_bfloat16():
    module, x = encoder("ocr", dtype=jnp.bfloat16), jnp.zeros((1, 4, 5, 5), jnp.bfloat16)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, False))
    text = str(jax.make_jaxpr(lambda v: module.apply(v, x, False))(shapes))
    exponentials = [line for line in text.splitlines() if "= exp " in line]
    assert len(exponentials) == 2 and all(":f32[" in line for line in exponentials)
