"""EfficientNet against a NumPy forward pass by timm's names; sizes, counts, stochastic depth."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hfgd_jax import config as configuration
from hfgd_jax.models import build_model, macs
from hfgd_jax.models.backbones import BACKBONES, efficientnet
from hfgd_jax.models.backbones.efficientnet import EfficientNet, scaled_stages
from hfgd_jax.models.layers import BatchNorm
from hfgd_jax.weights import names

# Published of the classifiers; timm's networks have these too.
PARAMETERS = {
    "efficientnet_b0": 5_288_548,
    "efficientnet_b1": 7_794_184,
    "efficientnet_b2": 9_109_994,
    "efficientnet_b3": 12_233_232,
    "efficientnet_b4": 19_341_616,
    "efficientnet_b5": 30_389_784,
    "efficientnet_b6": 43_040_704,
    "efficientnet_b7": 66_347_960,
    "efficientnet_lite0": 4_652_008,
    "efficientnet_lite1": 5_416_680,
    "efficientnet_lite2": 6_092_072,
    "efficientnet_lite3": 8_197_096,
    "efficientnet_lite4": 13_006_568,
}
SMALL, SMALL_LITE = "efficientnet_x", "efficientnet_lite_x"


@pytest.fixture(autouse=True)
def small_variants(monkeypatch):
    """Eight blocks of 8 to 160 channels; one of them, in the second to last stage, is residual."""
    for name in (SMALL, SMALL_LITE):
        monkeypatch.setitem(efficientnet.SCALES, name, (0.5, 0.3))


def shapes_of(network):
    images = jax.ShapeDtypeStruct((1, 33, 33, 3), jnp.float32)
    return jax.eval_shape(lambda x: network.init(jax.random.key(0), x, False), images)


def random_variables(shapes, seed=0):
    """Every leaf away from 0 and 1, so that none can be left out unseen."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        normal = rng.standard_normal(leaf.shape)
        if path[-1].key == "kernel":
            normal *= np.sqrt(2 / np.prod(leaf.shape[:-1]))
        elif path[-1].key in ("scale", "var"):
            normal = 1 + 0.3 * np.abs(normal)
        return jnp.asarray(normal, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def timm_weights(variables, stages):
    """float64, by timm's names and in torch's layouts, written down apart from the tables."""
    p, stats, out = variables["params"], variables["batch_stats"], {}

    def conv(name, layer):
        kernel = np.asarray(layer["kernel"], np.float64)
        kernel = kernel[None, None] if kernel.ndim == 2 else kernel
        out[f"{name}.weight"] = kernel.transpose(3, 2, 0, 1)
        if "bias" in layer:
            out[f"{name}.bias"] = np.asarray(layer["bias"])

    def norm(name, *path):
        layer, own = p, stats
        for key in path:
            layer, own = layer[key], own[key]
        parts = {"weight": layer["scale"], "bias": layer["bias"]}
        parts |= {"running_mean": own["mean"], "running_var": own["var"]}
        out.update({f"{name}.{part}": np.asarray(value, np.float64) for part, value in parts.items()})

    for name, source in (("conv_stem", "stem"), ("conv_head", "head")):
        conv(name, p[source])
        norm({"stem": "bn1", "head": "bn2"}[source], f"{source}_bn")
    for s, stage in enumerate(stages):
        for b in range(stage.blocks):
            here, name = p[f"stage{s}_{b}"], f"blocks.{s}.{b}"
            order = ["expand", "depthwise", "project"] if s else ["depthwise", "project"]
            theirs = ["conv_pw", "conv_dw", "conv_pwl"] if s else ["conv_dw", "conv_pw"]
            for i, (ours, source) in enumerate(zip(order, theirs, strict=True), 1):
                conv(f"{name}.{source}", here[ours])
                norm(f"{name}.bn{i}", f"stage{s}_{b}", f"{ours}_bn")
            for ours, source in (("se_reduce", "conv_reduce"), ("se_expand", "conv_expand")):
                if ours in here:
                    conv(f"{name}.se.{source}", here[ours])
    return out


def numpy_efficientnet(w, x, stages, output_stride, epsilon, lite):
    """float64, one image [h, w, 3]; loops over the kernels' taps. The levels, and the expanded ones."""

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def act(x):
        return np.clip(x, 0, 6) if lite else x * sigmoid(x)

    def conv(x, key, stride=1, dilation=1):
        kernel = w[f"{key}.weight"]
        k, depthwise = kernel.shape[-1], kernel.shape[1] == 1
        pad = dilation * (k - 1) // 2
        x = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
        height, width = ((side - 2 * pad - 1) // stride + 1 for side in x.shape[:2])
        y = 0
        for a, b in np.ndindex(k, k):
            tap = x[a * dilation :: stride, b * dilation :: stride][:height, :width]
            y = y + (tap * kernel[:, 0, a, b] if depthwise else tap @ kernel[:, :, a, b].T)
        return y + w.get(f"{key}.bias", 0)

    def norm(x, key):
        x = (x - w[f"{key}.running_mean"]) / np.sqrt(w[f"{key}.running_var"] + epsilon)
        return x * w[f"{key}.weight"] + w[f"{key}.bias"]

    x, pyramid, expanded = act(norm(conv(x, "conv_stem", 2), "bn1")), {}, {}
    spatial, rate = 2, 1
    for s, stage in enumerate(stages):
        for b in range(stage.blocks):
            stride, own_rate = (stage.stride, rate) if b == 0 else (1, rate)
            if spatial * stride > output_stride:  # timm: the block itself still has the rate before
                rate, stride = rate * stride, 1
            spatial *= stride
            key, y = f"blocks.{s}.{b}", x
            if s:
                y = act(norm(conv(y, f"{key}.conv_pw"), f"{key}.bn1"))
            if b == 0 and s in (2, 3, 5):
                expanded[{2: 4, 3: 8, 5: 16}[s]] = y
            y = act(norm(conv(y, f"{key}.conv_dw", stride, own_rate), f"{key}.bn{2 if s else 1}"))
            if not lite:
                mean = conv(y.mean((0, 1), keepdims=True), f"{key}.se.conv_reduce")
                y = y * sigmoid(conv(act(mean), f"{key}.se.conv_expand"))
            y = (
                norm(conv(y, f"{key}.conv_pwl"), f"{key}.bn3")
                if s
                else norm(conv(y, f"{key}.conv_pw"), f"{key}.bn2")
            )
            x = x + y if b > 0 else y
        if s in (1, 2, 4, 6):
            pyramid[{1: 4, 2: 8, 4: 16, 6: 32}[s]] = x
    return pyramid, expanded | {32: act(norm(conv(x, "conv_head"), "bn2"))}


def relative(got, want):
    return np.abs(np.asarray(got, np.float64) - np.asarray(want)).max() / np.abs(want).max()


@pytest.mark.parametrize(
    ("name", "output_stride", "epsilon"), [(SMALL, 32, 1e-3), (SMALL, 16, 1e-5), (SMALL_LITE, 8, 1e-3)]
)
def test_equals_numpy(name, output_stride, epsilon):
    """67x98: no stride divides it. The levels, and the expanded ones."""
    plain, wide = (
        EfficientNet(name, output_stride, expanded, bn=BatchNorm(epsilon=epsilon))
        for expanded in (False, True)
    )
    variables, stages = random_variables(shapes_of(wide)), scaled_stages(name)
    images = np.random.default_rng(1).standard_normal((2, 67, 98, 3)).astype(np.float32)
    apply = jax.jit(lambda v, x: [network.apply(v, x, False) for network in (plain, wide)])
    weights = timm_weights(variables, stages)
    assert set(weights) == set(names.efficientnet.namings(name)[0].targets)
    image = images[1].astype(np.float64)
    expected = numpy_efficientnet(weights, image, stages, output_stride, epsilon, "lite" in name)
    for pyramid, wanted in zip(apply(variables, images), expected, strict=True):
        assert list(pyramid) == list(wanted) == [4, 8, 16, 32]
        for level, want in wanted.items():
            assert pyramid[level].shape[1:] == want.shape
            assert relative(pyramid[level][1], want) < 2e-5


def parameters(name):
    """By hand from the stages, with the classifier."""
    before = 32 if "lite" in name else efficientnet.round_channels(32, efficientnet.SCALES[name][0])
    total = (27 + 2) * before
    for stage in scaled_stages(name):
        for _ in range(stage.blocks):
            wide, squeezed = before * stage.expand, 0 if "lite" in name else before // 4
            total += before * wide + 2 * wide if stage.expand > 1 else 0
            total += (stage.kernel**2 + 2) * wide + (wide + 2) * stage.channels
            total += 2 * wide * squeezed + squeezed + (wide if squeezed else 0)
            before = stage.channels
    head = efficientnet.head_channels(name)
    return total + (before + 2) * head + (head + 1) * 1000


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    assert parameters(name) == PARAMETERS[name]


@pytest.mark.parametrize("name", ["efficientnet_b2", "efficientnet_lite1"])
def test_sizes(name):
    """A level's is that of every s-th pixel from the first; the network has the parameters that it should."""
    network, size = BACKBONES[name].build(output_stride=16, expanded_levels=True), (97, 64)
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    pyramid, variables = jax.eval_shape(
        lambda x: network.init_with_output(jax.random.key(0), x, False), images
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert count + (efficientnet.head_channels(name) + 1) * 1000 == PARAMETERS[name]
    narrow = BACKBONES[name].channels
    channels = {level: 6 * narrow[level] for level in (4, 8, 16)} | {32: efficientnet.head_channels(name)}
    for level, c in channels.items():
        assert pyramid[level].shape == (1, *((side - 1) // min(level, 16) + 1 for side in size), c)


def test_multiply_accumulates():
    """Lite0's at 224x224, by hand. The classifier's 1x1 convolution and matrix make it 385 million."""
    network, total = BACKBONES["efficientnet_lite0"].build(), 112 * 112 * 27 * 32
    side, before = 112, 32
    for stage in efficientnet.STAGES:
        for b in range(stage.blocks):
            wide = before * stage.expand
            total += side**2 * before * wide if stage.expand > 1 else 0
            side //= stage.stride if b == 0 else 1
            total += side**2 * wide * (stage.kernel**2 + stage.channels)
            before = stage.channels
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    counts = macs.count(lambda v, x: network.apply(v, x, False), shapes_of(network), x)
    assert sum(counts.values()) == total == 363_837_152


def test_stochastic_depth():
    """Only in training, above rate 0, and then by the rng `stochastic`; it drops residual branches alone."""
    images = jnp.asarray(np.random.default_rng(1).standard_normal((2, 33, 33, 3)), jnp.float32)
    plain, dropping = EfficientNet(SMALL), EfficientNet(SMALL, drop_path=0.8)
    variables = random_variables(shapes_of(plain))
    run = lambda network, **kwargs: network.apply(  # noqa: E731
        variables, images, True, mutable=["batch_stats"], **kwargs
    )[0]
    whole = jax.jit(lambda: run(plain))()  # no rng is asked for
    with pytest.raises(flax.errors.InvalidRngError, match="stochastic"):
        jax.eval_shape(lambda: run(dropping))
    apply = jax.jit(lambda key: run(dropping, rngs={"stochastic": key}))
    drawn = [apply(jax.random.key(i)) for i in (0, 0, 1, 2, 3)]
    for level in whole:
        np.testing.assert_array_equal(drawn[0][level], drawn[1][level])
    assert relative(drawn[0][16], whole[16]) < 1e-6  # the residual block comes after
    assert len({np.asarray(pyramid[32]).tobytes() for pyramid in drawn}) > 1
    assert BACKBONES["efficientnet_lite0"].drop_path == 0.2


@pytest.mark.parametrize(
    ("fields", "epsilon", "mean", "std"),
    [
        ({}, 1e-3, 127.0, 128.0),
        ({"batch_norm_epsilon": 1e-5, "normalization": "half"}, 1e-5, 127.5, 127.5),
    ],
)
def test_the_source_of_the_weights_can_be_told(fields, epsilon, mean, std):
    config = configuration.default()
    configuration.set_backbone(config, "efficientnet_lite0")
    config.model.backbone.update(fields)
    model = build_model(config.model, 5, "float32")
    assert model.backbone.bn == BatchNorm(config.model.batch_norm_decay, epsilon)
    assert (model.mean, model.std) == ((mean,) * 3, (std,) * 3)
