"""ConvNeXt against a NumPy forward pass by timm's names; shapes, dilation, stochastic depth and scanning."""

import math

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from hfgd_jax.models import macs
from hfgd_jax.models.backbones import BACKBONES
from hfgd_jax.models.backbones.convnext import VARIANTS, ConvNeXt
from hfgd_jax.weights.names import convnext

erf = np.vectorize(math.erf)
DEPTHS, WIDTHS = (1, 1, 2, 1), (4, 6, 8, 10)


def network(depths=DEPTHS, **changes):
    return ConvNeXt(depths, WIDTHS[: len(depths)], **changes)


def random_variables(shapes, seed=0):
    """Every leaf away from 0 and 1, so that none can be left out unseen."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        normal = rng.standard_normal(leaf.shape)
        if path[-1].key == "kernel":
            normal /= np.sqrt(np.prod(leaf.shape[:-1]))
        elif path[-1].key in ("scale", "layer_scale"):
            normal = 1 + 0.3 * normal
        return jnp.asarray(normal, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def shapes_of(net):
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return jax.eval_shape(lambda x: net.init(jax.random.key(0), x, False), images)


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(1).standard_normal((2, 67, 97, 3)), jnp.float32)


def timm_weights(variables):
    """float64, by timm's names and in torch's layouts, written down apart from the tables."""
    p, out = variables["params"], {}

    def put(name, layer):
        kernel = np.asarray(layer["kernel"] if "kernel" in layer else layer["scale"], np.float64)
        order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[kernel.ndim]
        out[f"{name}.weight"], out[f"{name}.bias"] = kernel.transpose(order), np.asarray(layer["bias"])

    put("stem.0", p["stem"])
    put("stem.1", p["stem_norm"])
    for s, depth in enumerate(DEPTHS):
        if s:
            put(f"stages.{s}.downsample.0", p[f"downsample{s + 1}_norm"])
            put(f"stages.{s}.downsample.1", p[f"downsample{s + 1}"])
        for b in range(depth):
            block = p[f"stage{s + 1}_{b}"]
            parts = {"conv_dw": "depthwise", "norm": "norm", "mlp.fc1": "expand", "mlp.fc2": "project"}
            for theirs, ours in parts.items():
                put(f"stages.{s}.blocks.{b}.{theirs}", block[ours])
            out[f"stages.{s}.blocks.{b}.gamma"] = np.asarray(block["layer_scale"])
        put(f"norm{s}", p[f"norm_{4 << s}"])
    return out


def numpy_convnext(w, x, output_stride):
    """float64, one image [h, w, 3]; loops over the kernels' taps."""

    def conv(x, key, stride, dilation=1, pads=(0, 0), depthwise=False):
        kernel = w[f"{key}.weight"]
        k, reach = kernel.shape[-1], (kernel.shape[-1] - 1) * dilation
        x = np.pad(x, (pads, pads, (0, 0)))
        height, width = ((side - reach - 1) // stride + 1 for side in x.shape[:2])
        y = 0
        for a, b in np.ndindex(k, k):
            tap = x[a * dilation :: stride, b * dilation :: stride][:height, :width]
            y = y + (tap * kernel[:, 0, a, b] if depthwise else tap @ kernel[:, :, a, b].T)
        return y + w[f"{key}.bias"]

    def norm(x, key):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * w[f"{key}.weight"] + w[f"{key}.bias"]

    def dense(x, key):
        return x @ w[f"{key}.weight"].T + w[f"{key}.bias"]

    # timm: (stride, dilation and padding of the 2x2; dilation of the 7x7) of stages 2 to 4
    plan = {
        32: [(2, 1, (0, 0), 1), (2, 1, (0, 0), 1), (2, 1, (0, 0), 1)],
        16: [(2, 1, (0, 0), 1), (2, 1, (0, 0), 1), (1, 1, (0, 1), 2)],
        8: [(2, 1, (0, 0), 1), (1, 1, (0, 1), 2), (1, 2, (1, 1), 4)],
    }[output_stride]
    x, pyramid = norm(conv(x, "stem.0", 4), "stem.1"), {}
    for s, depth in enumerate(DEPTHS):
        rate = 1
        if s:
            stride, first, pads, rate = plan[s - 1]
            key = f"stages.{s}.downsample"
            x = conv(norm(x, f"{key}.0"), f"{key}.1", stride, first, pads)
        for b in range(depth):
            key = f"stages.{s}.blocks.{b}"
            y = conv(x, f"{key}.conv_dw", 1, rate, (3 * rate, 3 * rate), depthwise=True)
            y = dense(norm(y, f"{key}.norm"), f"{key}.mlp.fc1")
            y = dense(y * (1 + erf(y / np.sqrt(2))) / 2, f"{key}.mlp.fc2")
            x = x + y * w[f"{key}.gamma"]
        pyramid[4 << s] = norm(x, f"norm{s}")
    return pyramid


def relative(got, want):
    return np.abs(np.asarray(got, np.float64) - np.asarray(want)).max() / np.abs(want).max()


@pytest.mark.parametrize("output_stride", [32, 16, 8])
def test_equals_numpy(output_stride, images):
    """67x97: no stride divides it."""
    net = network(output_stride=output_stride)
    variables = random_variables(shapes_of(net))
    pyramid = jax.jit(lambda v, x: net.apply(v, x, False))(variables, images)
    weights = timm_weights(variables)
    assert set(weights) - {f"norm{s}.{leaf}" for s in range(4) for leaf in ("weight", "bias")} == set(
        convnext.targets(convnext.TABLES["timm"], DEPTHS)
    )
    for level, want in numpy_convnext(weights, np.asarray(images[1], np.float64), output_stride).items():
        stride = min(level, output_stride)
        assert pyramid[level].shape == (2, 67 // stride, 97 // stride, WIDTHS[[4, 8, 16, 32].index(level)])
        assert relative(pyramid[level][1], want) < 2e-5


@pytest.mark.parametrize("name", ["convnext_a", "convnext_b"])
def test_shapes(name):
    """With the same parameters for any output stride; `scan_blocks` traces a stage's block once."""
    variables = shapes_of(BACKBONES[name].build())
    for output_stride in (32, 16, 8):
        net = BACKBONES[name].build(output_stride=output_stride, scan_blocks=True)
        for height, width in ((224, 224), (513, 481)):
            x = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
            pyramid = jax.eval_shape(lambda v, x, net=net: net.apply(v, x, False), variables, x)
            assert list(pyramid) == [4, 8, 16, 32]
            for level, c in BACKBONES[name].channels.items():
                stride = min(level, output_stride)
                assert pyramid[level].shape == (1, height // stride, width // stride, c)


@pytest.mark.parametrize(
    "name, millions",
    [
        ("convnext_a", 3.70),
        ("convnext_t", 28.6),
        ("convnext_s", 50.2),
        ("convnext_b", 88.6),
        ("convnext_l", 197.8),
    ],
)
def test_parameters(name, millions):
    """Those published of the classifiers (timm for atto, the paper's Table 1), with their heads."""
    widths = VARIANTS[name].widths
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes_of(BACKBONES[name].build()))) - 2 * sum(widths)
    head = 2 * widths[-1] + (widths[-1] + 1) * 1000
    assert (count + head) / 1e6 == pytest.approx(millions, rel=2e-3)


@pytest.mark.parametrize("name, millions", [("convnext_t", 4456), ("convnext_l", 34372)])
def test_multiply_accumulates(name, millions):
    """timm's counts at 224x224 (4.5 and 34.4 GFLOPs in the paper's Table 1), whose head adds 1.5 at most."""
    net, x = BACKBONES[name].build(scan_blocks=True), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    counts = macs.count(lambda v, x: net.apply(v, x, False), shapes_of(net), x)
    assert sum(counts.values()) / 1e6 == pytest.approx(millions, rel=1e-3)


def test_a_scan_gives_the_loop_s_outputs_and_gradients(images):
    """In training, with stochastic depth; the parameters are those of the loop."""
    images, key, results = images[:, :32, :32], jax.random.key(5), []
    loop, scan = (network((2,), drop_path=0.5, scan_blocks=scan_blocks) for scan_blocks in (False, True))
    variables = random_variables(shapes_of(loop))
    assert jax.tree.map(np.shape, shapes_of(scan)) == jax.tree.map(np.shape, variables)
    for net in (loop, scan):

        def loss(v, net=net):
            feature = net.apply(v, images, True, rngs={"stochastic": key})[4]
            return jnp.sum(jnp.sin(feature)), feature

        (_, feature), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables)
        results.append((feature, gradient))
        jaxpr = str(jax.make_jaxpr(lambda v, net=net: net.apply(v, images, False))(variables))
        assert jaxpr.count("scan[") == (net is scan)
    for want, got in zip(*(jax.tree.leaves(result) for result in results), strict=True):
        assert np.abs(want).max() > 0
        assert relative(got, want) < 1e-5


def test_stochastic_depth(images):
    """Only in training, above rate 0, and then by the rng `stochastic`."""
    images, dropping = images[:1, :32, :32], network((1, 1), drop_path=0.8)
    variables = random_variables(shapes_of(dropping))
    plain = jax.jit(lambda v: network((1, 1)).apply(v, images, True))(variables)  # no rng is asked for
    still = jax.jit(lambda v: dropping.apply(v, images, False))(variables)
    with pytest.raises(flax.errors.InvalidRngError, match="stochastic"):
        jax.eval_shape(lambda v: dropping.apply(v, images, True), variables)
    apply = jax.jit(lambda v, key: dropping.apply(v, images, True, rngs={"stochastic": key}))
    drawn = [apply(variables, jax.random.key(i)) for i in (0, 0, 1, 2, 3)]
    for level in plain:
        np.testing.assert_allclose(plain[level], still[level], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(drawn[0][level], drawn[1][level])
    np.testing.assert_allclose(drawn[0][4], plain[4], rtol=1e-4, atol=1e-5)  # the first block's rate is 0
    assert len({np.asarray(pyramid[8]).tobytes() for pyramid in drawn}) > 1


def test_initialisation():
    """The authors': truncated normal of 0.02, zero biases, layer scale 1e-6; and the settings' rates."""
    images = jnp.zeros((1, 32, 32, 3))
    variables = jax.jit(lambda key: ConvNeXt((1,), (24,)).init(key, images, False))(jax.random.key(0))
    params = traverse_util.flatten_dict(variables["params"])
    assert sum(path[-1] == "kernel" for path in params) == 4
    for path, leaf in params.items():
        if path[-1] == "kernel":
            assert np.abs(leaf).max() <= 0.04
            assert 0.015 < np.std(leaf) < 0.02
        else:
            want = {"bias": 0, "scale": 1, "layer_scale": 1e-6}[path[-1]]
            np.testing.assert_array_equal(leaf, np.float32(want))
    assert [BACKBONES[name].drop_path for name in VARIANTS] == [0.0, 0.4, 0.3, 0.4, 0.4]


def test_bfloat16_features(images):
    """Near the float32 ones, from float32 parameters."""
    variables = random_variables(shapes_of(network((1, 1))))
    narrow, wide = (
        jax.jit(lambda v, dtype=dtype: network((1, 1), dtype=dtype).apply(v, images, False))(variables)
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    for level, want in wide.items():
        assert narrow[level].dtype == jnp.bfloat16
        assert relative(narrow[level].astype(jnp.float32), want) < 0.05
