"""UPerNet's and DeepLabV3+'s decoders against NumPy in float64, and sizes of every upsampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hfgd_jax import geometry as geo
from hfgd_jax.models.upsamplers import UPSAMPLERS

LEVELS = (4, 8, 16, 32)
GEOMETRIES = ("align_corners", "half_pixel")


def sizes_of(geometry, last_stride):
    size = geo.grid_size((63, 96), geometry)
    return {level: geo.feature_size(size, min(level, last_stride), geometry) for level in LEVELS}


@pytest.mark.parametrize("name", [name for name in UPSAMPLERS if name != "none"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("last_stride", [32, 16, 8, None])
def test_the_low_feature_is_as_large_as_level_4(name, geometry, last_stride):
    """On the grid, also dilated, and (None) off it, where sizes follow from symmetric padding."""
    off_grid = dict(zip(LEVELS, ((25, 38), (13, 19), (7, 10), (4, 5)), strict=True))
    sizes = off_grid if last_stride is None else sizes_of(geometry, last_stride)
    pyramid = {level: jax.ShapeDtypeStruct((2, *size, level), jnp.bfloat16) for level, size in sizes.items()}
    module = UPSAMPLERS[name](channels=8, geometry=geometry, dtype=jnp.bfloat16)
    init = lambda pyramid: module.init_with_output(jax.random.key(0), pyramid, False)  # noqa: E731
    low, variables = jax.eval_shape(init, pyramid)
    assert low.shape == (2, *sizes[4], 8) and low.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


def random_example(name, sizes, geometry, model_tools, top=5):
    rng, module = np.random.default_rng(0), UPSAMPLERS[name](channels=5, geometry=geometry)
    widths = {4: 2, 8: 3, 16: 4, 32: top}
    pyramid = {
        level: rng.normal(size=(2, *size, widths[level])).astype(np.float32) for level, size in sizes.items()
    }
    shapes = jax.eval_shape(lambda p: module.init(jax.random.key(0), p, False), pyramid)
    return module, pyramid, model_tools.randomize(shapes)


def check(module, pyramid, variables, expected):
    assert expected.max() > 0.1
    low = jax.jit(lambda v, p: module.apply(v, p, False))(variables, pyramid)
    np.testing.assert_allclose(low, expected, atol=5e-5)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("top", [5, 6])
def test_upernet_equals_naive(geometry, top, model_tools, naive):
    """Level 32 as it is where it has the channels; otherwise through a lateral."""
    sizes = sizes_of(geometry, 32)
    module, pyramid, variables = random_example("upernet", sizes, geometry, model_tools, top)
    names = {f"{part}_{level}" for part in ("lateral", "smooth") for level in (4, 8, 16)} | {"fuse"}
    assert set(variables["params"]) == names | ({"lateral_32"} if top == 6 else set())
    conv = lambda name, x: naive.conv_norm_relu(variables, name, x)  # noqa: E731
    x32 = pyramid[32] if top == 5 else conv("lateral_32", pyramid[32])
    x16 = conv("lateral_16", pyramid[16]) + naive.resize(x32, sizes[16], geometry)
    x8 = conv("lateral_8", pyramid[8]) + naive.resize(x16, sizes[8], geometry)
    x4 = conv("lateral_4", pyramid[4]) + naive.resize(x8, sizes[4], geometry)
    levels = [conv("smooth_4", x4), conv("smooth_8", x8), conv("smooth_16", x16), x32]
    maps = [naive.resize(x, sizes[4], geometry) for x in levels]
    check(module, pyramid, variables, conv("fuse", np.concatenate(maps, axis=-1)))


@pytest.mark.parametrize("geometry, top, last_stride", [("align_corners", 5, 8), ("half_pixel", 6, 32)])
def test_deeplabv3plus_equals_naive(geometry, top, last_stride, model_tools, naive):
    sizes = sizes_of(geometry, last_stride)
    module, pyramid, variables = random_example("deeplabv3plus", sizes, geometry, model_tools, top)
    names = {"low_level", "refine_1", "refine_2"}
    assert set(variables["params"]) == names | ({"lateral_32"} if top == 6 else set())
    conv = lambda name, x: naive.conv_norm_relu(variables, name, x)  # noqa: E731
    low, high = conv("low_level", pyramid[4]), pyramid[32]
    assert low.shape[-1] == 48
    high = high if top == 5 else conv("lateral_32", high)
    x = np.concatenate([low, naive.resize(high, sizes[4], geometry)], axis=-1)
    check(module, pyramid, variables, conv("refine_2", conv("refine_1", x)))
