"""ResNets against a NumPy forward pass by torchvision's names, the `d` variants by timm's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hfgd_jax.models.backbones import BACKBONES, normalization, resnet
from hfgd_jax.weights.pretrained import load_backbone

safetensors = pytest.importorskip("safetensors.numpy")


def source_weights(name, seed=0):
    """Random weights in torchvision's (timm's) names and layout, from the published structure."""
    rng = np.random.default_rng(seed)
    depths = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3), "resnet50d": (3, 4, 6, 3)}[name]
    out = {}

    def conv(key, o, i, k):
        out[f"{key}.weight"] = rng.normal(size=(o, i, k, k)) * np.sqrt(2 / (i * k * k))

    def norm(key, c):
        out[f"{key}.weight"], out[f"{key}.running_var"] = rng.uniform(0.5, 1.0, (2, c))
        out[f"{key}.bias"], out[f"{key}.running_mean"] = 0.1 * rng.normal(size=(2, c))
        out[f"{key}.num_batches_tracked"] = np.array(7)

    if name == "resnet50d":
        for key, o, i in (("conv1.0", 32, 3), ("conv1.3", 32, 32), ("conv1.6", 64, 32)):
            conv(key, o, i, 3)
        norm("conv1.1", 32)
        norm("conv1.4", 32)
    else:
        conv("conv1", 64, 3, 7)
    norm("bn1", 64)
    c = 64
    for stage, depth in enumerate(depths):
        f = 64 << stage
        for i in range(depth):
            key = f"layer{stage + 1}.{i}"
            shapes = [(f, c, 3), (f, f, 3)] if name == "resnet18" else [(f, c, 1), (f, f, 3), (4 * f, f, 1)]
            for n, (o, inputs, k) in enumerate(shapes, 1):
                conv(f"{key}.conv{n}", o, inputs, k)
                norm(f"{key}.bn{n}", o)
            if c != shapes[-1][0]:
                at = 1 if name == "resnet50d" else 0  # after the pooling, which has a number of its own
                conv(f"{key}.downsample.{at}", shapes[-1][0], c, 1)
                norm(f"{key}.downsample.{at + 1}", shapes[-1][0])
            c = shapes[-1][0]
    out["fc.weight"], out["fc.bias"] = rng.normal(size=(10, c)), rng.normal(size=10)
    return {key: value.astype(np.int64 if value.ndim == 0 else np.float32) for key, value in out.items()}


def numpy_resnet(w, name, x):
    """float64, images [h, w, 3]; loops over the kernel's taps."""

    def conv(x, key, stride=1):
        kernel = w[f"{key}.weight"].astype(np.float64)
        k = kernel.shape[-1]
        x = np.pad(x, ((k // 2, k // 2), (k // 2, k // 2), (0, 0)))
        height, width = ((side - k) // stride + 1 for side in x.shape[:2])
        return sum(
            x[a : a + stride * height : stride, b : b + stride * width : stride][:height, :width]
            @ kernel[:, :, a, b].T
            for a in range(k)
            for b in range(k)
        )

    def norm(x, key):
        scale = w[f"{key}.weight"] / np.sqrt(w[f"{key}.running_var"].astype(np.float64) + 1e-5)
        return (x - w[f"{key}.running_mean"]) * scale + w[f"{key}.bias"]

    def mean_2x2(x):
        rows = [x[i : i + 2].mean(0) for i in range(0, x.shape[0], 2)]  # the last may be alone
        return np.stack([np.stack([row[j : j + 2].mean(0) for j in range(0, x.shape[1], 2)]) for row in rows])

    if name == "resnet50d":
        x = np.maximum(norm(conv(x, "conv1.0", 2), "conv1.1"), 0)
        x = np.maximum(norm(conv(x, "conv1.3"), "conv1.4"), 0)
        x = np.maximum(norm(conv(x, "conv1.6"), "bn1"), 0)
    else:
        x = np.maximum(norm(conv(x, "conv1", 2), "bn1"), 0)
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    side = (x.shape[0] - 1) // 2 + 1
    x = np.max(
        [padded[a:, b:][: 2 * side - 1 : 2, : 2 * side - 1 : 2] for a in range(3) for b in range(3)], 0
    )
    pyramid, count = {}, 2 if name == "resnet18" else 3
    for stage in range(4):
        i = 0
        while f"layer{stage + 1}.{i}.conv1.weight" in w:
            key, y = f"layer{stage + 1}.{i}", x
            stride = 2 if i == 0 and stage > 0 else 1
            for n in range(1, count + 1):
                at = stride if n == count - 1 else 1  # the 3x3 of a bottleneck, the first of a basic block
                y = norm(conv(y, f"{key}.conv{n}", at), f"{key}.bn{n}")
                y = np.maximum(y, 0) if n < count else y
            if f"{key}.downsample.0.weight" in w:
                x = norm(conv(x, f"{key}.downsample.0", stride), f"{key}.downsample.1")
            elif f"{key}.downsample.1.weight" in w:
                x = mean_2x2(x) if stride == 2 else x
                x = norm(conv(x, f"{key}.downsample.1"), f"{key}.downsample.2")
            x, i = np.maximum(x + y, 0), i + 1
        pyramid[4 << stage] = x
    return pyramid


def imported(name, weights, folder, **kwargs):
    """The network and its variables, by way of a file."""
    network = BACKBONES[name].build(**kwargs)
    images = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, False), images)
    variables = {
        kind: {"backbone": jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), tree)}
        for kind, tree in shapes.items()
    }
    path = folder / f"{name}.safetensors"
    safetensors.save_file(weights, path)
    loaded, report = load_backbone(variables, name, path)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(variables)), "the given variables changed"
    return network, {kind: tree["backbone"] for kind, tree in loaded.items()}, report


def relative(x, reference):
    return np.abs(np.asarray(x) - reference).max() / np.abs(reference).max()


@pytest.mark.parametrize(
    "name, side", [("resnet18", 65), ("resnet18", 64), ("resnet50", 65), ("resnet50d", 65)]
)
def test_equals_numpy(name, side, tmp_path):
    weights = source_weights(name)
    network, variables, report = imported(name, weights, tmp_path)
    assert len(report.loaded) == sum(
        not key.startswith("fc") and not key.endswith("tracked") for key in weights
    )
    image = np.random.default_rng(1).normal(size=(side, side, 3)).astype(np.float32)
    pyramid = jax.jit(lambda v, x: network.apply(v, x, False))(variables, image[None])
    for level, expected in numpy_resnet(weights, name, image.astype(np.float64)).items():
        assert pyramid[level].shape[1:] == expected.shape
        assert pyramid[level].shape[-1] == BACKBONES[name].channels[level]
        assert relative(pyramid[level][0], expected) < 1e-4


@pytest.mark.parametrize(
    "name, size, strides",
    [("resnet18", (65, 97), (16, 8)), ("resnet50", (65, 97), (8,)), ("resnet50d", (64, 96), (16,))],
)
def test_dilated_features_are_the_undilated_ones_in_between(name, size, strides, tmp_path):
    """Sampled at the undilated network's places, a dilated network gives its features.

    Those of a `d` variant only at OS 16, and where no mean hangs over the edge: timm's means of 2x2 pixels
    are not dilated themselves.
    """
    weights = source_weights(name)
    image = np.random.default_rng(1).normal(size=(1, *size, 3)).astype(np.float32)
    apply = lambda network, variables: jax.jit(lambda v, x: network.apply(v, x, False))(variables, image)  # noqa: E731
    network, variables, _ = imported(name, weights, tmp_path)
    plain = apply(network, variables)
    for output_stride in strides:
        dilated = apply(BACKBONES[name].build(output_stride=output_stride), variables)
        for level in (16, 32):
            step = level // min(level, output_stride)
            side = -(-size[1] // min(level, output_stride))
            assert dilated[level].shape[2] == side
            assert relative(dilated[level][:, ::step, ::step], np.asarray(plain[level])) < 1e-5


@pytest.mark.parametrize(
    "name, output_stride, multi_grid, last_stages",
    [
        ("resnet50", 32, True, [[1] * 6, [1, 1, 1]]),
        ("resnet50", 16, False, [[1] * 6, [1, 2, 2]]),
        ("resnet50", 8, False, [[1, 2, 2, 2, 2, 2], [2, 4, 4]]),
        ("resnet50", 8, True, [[1, 2, 2, 2, 2, 2], [4, 8, 16]]),
        ("resnet50", 16, True, [[1] * 6, [2, 4, 8]]),
        ("resnet50d", 8, False, [[1, 2, 2, 2, 2, 2], [2, 4, 4]]),
    ],
)
def test_dilation_rates(name, output_stride, multi_grid, last_stages):
    plan = resnet.ResNet(name, output_stride, multi_grid)._plan()
    assert [[d[0] for _, d in stage] for stage in plan[2:]] == last_stages
    product = np.prod([stride for stage in plan for stride, _ in stage])
    assert 4 * product == output_stride


def test_normalization_is_torchvisions():
    mean, std = normalization("resnet50", "")
    np.testing.assert_allclose(np.array(mean) / 255, (0.485, 0.456, 0.406), atol=1e-6)
    np.testing.assert_allclose(np.array(std) / 255, (0.229, 0.224, 0.225), atol=1e-6)


def test_shapes_of_a_deep_stem():
    """And its parameters: the stem's are all that differs from the plain network's."""
    name = "resnet50d"
    images = jax.ShapeDtypeStruct((1, 513, 481, 3), jnp.float32)
    parameters = {}
    for variant in (name, name[:-1]):
        init = BACKBONES[variant].build().init
        variables = jax.eval_shape(lambda x, init=init: init(jax.random.key(0), x, False), images)
        parameters[variant] = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert parameters[name] - parameters[name[:-1]] == (32 * 27 + 32 * 288 + 64 * 288 + 2 * 64) - 64 * 147
    variables = jax.eval_shape(lambda x: BACKBONES[name].build().init(jax.random.key(0), x, False), images)
    for output_stride in (32, 16, 8):
        network = BACKBONES[name].build(output_stride=output_stride)
        pyramid = jax.eval_shape(lambda v, x, net=network: net.apply(v, x, False), variables, images)
        for level, c in BACKBONES[name].channels.items():
            stride = min(level, output_stride)
            assert pyramid[level].shape == (1, 512 // stride + 1, 480 // stride + 1, c)
