"""Swin Transformer: a NumPy block with loops, any size, scan, stochastic depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hfgd_jax.models.backbones import BACKBONES, swin
from hfgd_jax.models.backbones.swin import Swin, SwinBlock

TINY = {"depths": (1, 5), "width": 8, "heads": (1, 2), "window": 3}  # two stages, the second of 2.5 pairs
SIZE = (18, 37)
EPSILON = 1e-5


def same(got, want, tolerance=1e-5):
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


def erf(x):
    """By its Maclaurin series, with enough terms for |x| < 5."""
    term, total = x, x
    for n in range(1, 120):
        term = -term * x * x / n
        total = total + term / (2 * n + 1)
    return 2 / np.sqrt(np.pi) * total


def numpy_block(params, x, heads, window, shift):
    """One sample [h, w, c], float64; each window, head and pair of positions on its own."""
    params = jax.tree.map(lambda v: np.asarray(v, np.float64), params)
    height, width, c = x.shape

    def norm(x, p):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON) * p["scale"] + p["bias"]

    def dense(x, p):
        return x @ p["kernel"] + p["bias"]

    y = norm(x, params["norm1"])
    rows, columns = -(-height // window) * window, -(-width // window) * window
    padded = np.zeros((rows, columns, c))
    padded[:height, :width] = y
    out = np.zeros_like(padded)
    for top in range(0, rows, window):
        for left in range(0, columns, window):
            # the window's positions: where they lie in the padded map, and whether the shift wrapped them
            places = []
            for i in range(window):
                for j in range(window):
                    row, column = top + i + shift, left + j + shift
                    places.append((row % rows, column % columns, row >= rows, column >= columns, i, j))
            q, k, v = np.split(dense(np.stack([padded[p[:2]] for p in places]), params["qkv"]), 3, -1)
            for head in range(heads):
                part = slice(head * c // heads, (head + 1) * c // heads)
                for n, (*_, down, right, i, j) in enumerate(places):
                    seen, logits = [], []
                    for m, (*_, down2, right2, i2, j2) in enumerate(places):
                        if (down, right) == (down2, right2):
                            offset = (i - i2 + window - 1) * (2 * window - 1) + j - j2 + window - 1
                            bias = params["position_bias"][offset, head]
                            logits.append(q[n, part] @ k[m, part] / np.sqrt(c // heads) + bias)
                            seen.append(v[m, part])
                    weights = np.exp(np.array(logits) - max(logits))
                    out[places[n][0], places[n][1], part] = weights / weights.sum() @ np.stack(seen)
    x = x + dense(out[:height, :width], params["proj"])
    y = dense(norm(x, params["norm2"]), params["fc1"])
    return x + dense(y * (1 + erf(y / np.sqrt(2))) / 2, params["fc2"])


def block_and_params(model_tools, shift=0, window=3):
    block = SwinBlock(2, window, shift, jnp.float32)
    shapes = jax.eval_shape(lambda x: block.init(jax.random.key(0), x, None), jnp.zeros((1, 4, 5, 8)))
    return block, model_tools.randomize(shapes)


@pytest.mark.parametrize(
    "size, window, shift",
    [((7, 5), 3, 0), ((7, 5), 3, 1), ((6, 8), 4, 2), ((3, 7), 4, 2)],
    ids=["plain", "shifted", "half padded", "one window high"],
)
def test_a_block_is_that_of_plain_numpy(model_tools, size, window, shift):
    block, variables = block_and_params(model_tools, shift, window)
    x = np.random.default_rng(1).standard_normal((2, *size, 8))
    got = jax.jit(block.apply)(variables, x.astype(np.float32), None)
    for sample, result in zip(x, got, strict=True):
        same(result, numpy_block(variables["params"], sample, 2, window, shift))


@pytest.mark.parametrize("name", swin.VARIANTS)
@pytest.mark.parametrize("size", [(224, 224), (513, 481)])
def test_levels_and_published_parameter_counts(name, size):
    entry = BACKBONES[name]
    network = entry.build(dtype=jnp.float32)
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    shapes, variables = jax.eval_shape(
        lambda x: network.init_with_output(jax.random.key(0), x, train=False), images
    )
    for level, channels in entry.channels.items():
        assert shapes[level].shape == (1, -(-size[0] // level), -(-size[1] // level), channels)
    assert list(shapes) == [4, 8, 16, 32]
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    level_norms = 2 * sum(entry.channels.values())
    classifier = 2 * entry.channels[32] + 1000 * (entry.channels[32] + 1)
    millions = {"swin_t": 28.3, "swin_s": 49.6, "swin_b": 87.9, "swin_l": 196.7}[name]
    assert round((count - level_norms + classifier) / 1e6, 1) == millions


def tiny(model_tools, **changes):
    network = Swin(**(TINY | changes))
    images = jax.ShapeDtypeStruct((1, *SIZE, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, train=False), images)
    return network, model_tools.randomize(shapes)


def images(batch=2):
    return jnp.asarray(np.random.default_rng(2).standard_normal((batch, *SIZE, 3)), jnp.float32)


def test_a_scan_gives_the_loop_s_outputs_and_gradients(model_tools):
    stage = {"depths": (4,), "heads": (2,), "drop_path": 0.5}
    loop, variables = tiny(model_tools, **stage)
    scan, other = tiny(model_tools, **stage, scan_blocks=True)
    assert jax.tree.structure(variables) == jax.tree.structure(other)

    def loss(network):
        def run(variables, x):
            pyramid = network.apply(variables, x, True, rngs={"stochastic": jax.random.key(4)})
            return sum((y * jnp.cos(y)).mean() for y in pyramid.values()), pyramid

        return jax.jit(jax.value_and_grad(run, has_aux=True))

    x = images()
    assert str(jax.make_jaxpr(loss(scan))(variables, x)).count("scan[") == 2  # forward and backward
    (_, want), want_gradient = loss(loop)(variables, x)
    (_, got), got_gradient = loss(scan)(variables, x)
    jax.tree.map(same, got, want)
    jax.tree.map(same, got_gradient, want_gradient)


def test_stochastic_depth_is_on_in_training_only(model_tools):
    network, variables = tiny(model_tools, drop_path=0.5)
    x = jnp.repeat(images(1), 2, axis=0)
    run = jax.jit(network.apply, static_argnums=2)
    still = run(variables, x, False)  # takes no rng
    np.testing.assert_array_equal(still[8][0], still[8][1])
    moved = run(variables, x, True, rngs={"stochastic": jax.random.key(5)})
    assert np.abs(moved[8][0] - moved[8][1]).max() > 0.01
    np.testing.assert_allclose(moved[4], still[4], atol=1e-5)  # the first block's rate is 0
    jax.eval_shape(lambda: network.clone(drop_path=0.0).apply(variables, x, True))  # takes no rng


def test_stochastic_depth_keeps_the_expectation(model_tools):
    block, variables = block_and_params(model_tools, 1)
    variables["params"]["fc2"] = jax.tree.map(jnp.zeros_like, variables["params"]["fc2"])
    x = np.random.default_rng(3).standard_normal((1, 4, 5, 8)).astype(np.float32)
    drops = swin.Drops(np.float32(0.4), jax.random.key(6))
    run = jax.jit(block.apply)
    mean, want = run(variables, np.repeat(x, 2000, axis=0), drops).mean(0), run(variables, x, None)[0]
    assert np.abs(mean - want).max() < 0.06 * np.abs(want - x[0]).max()


def test_a_bfloat16_run_has_bfloat16_features(model_tools):
    network, variables = tiny(model_tools)
    want = jax.jit(network.apply, static_argnums=2)(variables, images(), False)
    got = jax.jit(network.clone(dtype=jnp.bfloat16).apply, static_argnums=2)(variables, images(), False)
    assert list(got) == [4, 8]
    for level, feature in got.items():
        assert feature.dtype == jnp.bfloat16
        same(np.asarray(feature, np.float32), want[level], 0.1)
