"""FaPN: sizes, the published formulas, gradients and cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hfgd_jax import geometry as geo
from hfgd_jax.models import macs
from hfgd_jax.models.convolutions import convolve
from hfgd_jax.models.deformable import deformable_convolve
from hfgd_jax.models.upsamplers import UPSAMPLERS
from hfgd_jax.models.upsamplers.fapn import FeatureAlign, FeatureSelection

WIDTHS = {4: 4, 8: 8, 16: 12, 32: 24}


def pyramid_of(size, geometry="align_corners", coarsest=32, batch=1, high=None, seed=0):
    """Features of a random pyramid, level 32 of which is `high` wide where that is given."""
    rng = np.random.default_rng(seed)
    widths = WIDTHS | ({32: high} if high else {})
    shapes = {
        level: (batch, *geo.feature_size(size, min(level, coarsest), geometry), width)
        for level, width in widths.items()
    }
    return {level: jnp.asarray(rng.normal(size=shape), jnp.float32) for level, shape in shapes.items()}


@pytest.mark.parametrize(
    ("geometry", "size"), [("align_corners", (97, 161)), ("half_pixel", (96, 160)), ("half_pixel", (32, 64))]
)
@pytest.mark.parametrize("coarsest", [32, 8])
@pytest.mark.parametrize(("high", "dtype"), [(None, "float32"), (16, "bfloat16")])
def test_sizes(geometry, size, coarsest, high, dtype):
    """`high` is a context encoder's feature, which needs no lateral; below 32 the backbone is dilated."""
    pyramid = pyramid_of(size, geometry, coarsest, batch=2, high=high)
    module = UPSAMPLERS["fapn"](channels=16, geometry=geometry, dtype=jnp.dtype(dtype))
    low, variables = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), pyramid, True))
    assert low.shape == (2, *geo.feature_size(size, 4, geometry), 16) and low.dtype == dtype
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    params = variables["params"]
    expected = {f"{part}_{level}" for part in ("select", "align", "branch") for level in (4, 8, 16)}
    expected |= {"branch_32", "out"} | (set() if high else {"lateral_32"})
    assert set(params) == expected
    assert params["select_8"]["attention"]["kernel"].shape == (8, 8)
    assert params["align_8"]["deformable"]["offsets_and_masks"]["kernel"].shape == (3, 3, 16, 8 * 9 * 3)


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def naive_select(params, x):
    attention = sigmoid(np.mean(x, axis=(1, 2), keepdims=True) @ params["attention"]["kernel"])
    return (x + x * attention) @ params["conv"]["kernel"]


def naive_align(params, finer, coarser):
    guide = jnp.concatenate([finer, 2 * coarser], axis=-1) @ params["guide"]["kernel"]
    deformable = jax.tree.map(jnp.asarray, params["deformable"])
    predict = deformable["offsets_and_masks"]
    raw = np.asarray(convolve(guide, predict["kernel"], 1, 1) + predict["bias"])
    size, both = raw.shape[:3], 8 * 9 * 2
    offsets = raw[..., :both].reshape(*size, 8, 9, 2)
    masks = sigmoid(raw[..., both:]).reshape(*size, 8, 9)
    x, offsets, masks = (jnp.asarray(v, jnp.float32) for v in (coarser, offsets, masks))
    aligned = deformable_convolve(x, offsets, masks, deformable["kernel"]) + deformable["bias"]
    return finer + np.maximum(aligned, 0)


def test_selection_and_alignment_are_the_published_ones(model_tools):
    rng = np.random.default_rng(0)
    x, finer, coarser = (jnp.asarray(rng.normal(size=(2, 5, 6, n)), jnp.float32) for n in (6, 8, 8))
    for module, naive, arguments in (
        (FeatureSelection(8), naive_select, (x,)),
        (FeatureAlign(8), naive_align, (finer, coarser)),
    ):
        shapes = jax.eval_shape(lambda m=module, a=arguments: m.init(jax.random.key(0), *a))
        params = model_tools.randomize(shapes)["params"]
        expected = naive(jax.device_get(params), *arguments)
        np.testing.assert_allclose(module.apply({"params": params}, *arguments), expected, atol=1e-4)


def test_levels_are_merged_top_down_and_added_up(model_tools):
    """The whole upsampler from its parts, for a dilated backbone (two levels of one size)."""
    pyramid = pyramid_of((65, 65), coarsest=16)
    module = UPSAMPLERS["fapn"](channels=8)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), pyramid, False))
    variables = model_tools.randomize(shapes)
    params, stats = (jax.device_get(variables[key]) for key in ("params", "batch_stats"))

    def block(x, name):
        kernel, norm, moments = params[name]["conv"]["kernel"], params[name]["norm"], stats[name]["norm"]
        y = (
            x @ kernel
            if kernel.ndim == 2
            else np.asarray(convolve(jnp.asarray(x), jnp.asarray(kernel), 1, 1))
        )
        y = (y - moments["mean"]) / np.sqrt(moments["var"] + 1e-3)
        return np.maximum(y * norm["scale"] + norm["bias"], 0)

    enlarge = lambda x, level: np.asarray(geo.resize(jnp.asarray(x), pyramid[level].shape[1:3]))  # noqa: E731
    merged = {32: block(np.asarray(pyramid[32]), "lateral_32")}
    for level in (16, 8, 4):
        finer = naive_select(params[f"select_{level}"], np.asarray(pyramid[level])).astype(np.float32)
        merged[level] = naive_align(params[f"align_{level}"], finer, enlarge(merged[2 * level], level))
    total = sum(enlarge(block(x, f"branch_{level}"), 4) for level, x in merged.items())
    low = jax.jit(lambda v: module.apply(v, pyramid, False))(variables)
    np.testing.assert_allclose(low, block(total, "out"), atol=2e-4 * float(jnp.abs(low).max()))


def test_every_weight_has_a_gradient(model_tools):
    pyramid = pyramid_of((64, 32), "half_pixel", batch=2)
    module = UPSAMPLERS["fapn"](channels=8, geometry="half_pixel")
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), pyramid, True))
    variables = model_tools.randomize(shapes)

    @jax.jit
    def gradients(params, pyramid):
        def loss(params, pyramid):
            variables_of = {**variables, "params": params}
            low, _ = module.apply(variables_of, pyramid, True, mutable=["batch_stats"])
            return jnp.sum(low * jnp.sin(jnp.arange(low.size).reshape(low.shape)))

        return jax.grad(loss, (0, 1))(params, pyramid)

    found = gradients(variables["params"], pyramid)
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        assert np.isfinite(leaf).all() and np.any(leaf), jax.tree_util.keystr(path)


def test_multiply_accumulates():
    """The deformable product counts as the convolution that it is, nine taps of it."""
    channels, size = 16, (65, 97)
    pyramid = pyramid_of(size, high=channels)
    module = UPSAMPLERS["fapn"](channels=channels)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), pyramid, False))
    counted = macs.count(lambda v, p: module.apply(v, p, False), shapes, pyramid)
    expected = channels**2 * 17 * 25  # the last 1x1 convolution
    for level, x in pyramid.items():
        positions = x.shape[1] * x.shape[2]
        expected += positions * 9 * channels**2  # the branch
        if level != 32:
            expected += x.shape[-1] * (x.shape[-1] + positions * channels)  # selection
            expected += positions * channels * (2 * channels + 9 * 8 * 27 + 9 * channels)  # alignment
    assert sum(counted.values()) == expected
