"""ResNets against a NumPy forward pass by torchvision's names, and against torchvision where installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hfgd_jax.models.backbones import BACKBONES, channels, normalization, resnet
from hfgd_jax.pretrained import load_backbone

safetensors = pytest.importorskip("safetensors.numpy")


def source_weights(name, seed=0):
    """Random weights in torchvision's names and layout, from its published structure."""
    rng = np.random.default_rng(seed)
    depths = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}[name]
    out = {}

    def conv(key, o, i, k):
        out[f"{key}.weight"] = rng.normal(size=(o, i, k, k)) * np.sqrt(2 / (i * k * k))

    def norm(key, c):
        out[f"{key}.weight"], out[f"{key}.running_var"] = rng.uniform(0.5, 1.0, (2, c))
        out[f"{key}.bias"], out[f"{key}.running_mean"] = 0.1 * rng.normal(size=(2, c))
        out[f"{key}.num_batches_tracked"] = np.array(7)

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
                conv(f"{key}.downsample.0", shapes[-1][0], c, 1)
                norm(f"{key}.downsample.1", shapes[-1][0])
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


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("side", [65, 64])
def test_equals_numpy(name, side, tmp_path):
    if (name, side) == ("resnet50", 64):
        pytest.skip("the bottleneck's geometry is that of the basic block")
    weights = source_weights(name)
    network, variables, report = imported(name, weights, tmp_path)
    assert len(report.loaded) == sum(
        not key.startswith("fc") and not key.endswith("tracked") for key in weights
    )
    image = np.random.default_rng(1).normal(size=(side, side, 3)).astype(np.float32)
    pyramid = jax.jit(lambda v, x: network.apply(v, x, False))(variables, image[None])
    for level, expected in numpy_resnet(weights, name, image.astype(np.float64)).items():
        assert pyramid[level].shape[1:] == expected.shape
        assert pyramid[level].shape[-1] == channels(name)[level]
        assert relative(pyramid[level][0], expected) < 1e-4


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet101"])
@pytest.mark.parametrize("output_stride", [32, 16, 8])
def test_equals_torchvision(name, output_stride, tmp_path):
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("torchvision.models")
    if name == "resnet18" and output_stride != 32:
        pytest.skip("torchvision has no dilated basic block")
    weights = source_weights(name)
    dilate = [False, output_stride == 8, output_stride <= 16]
    reference = getattr(models, name)(num_classes=10, replace_stride_with_dilation=dilate).eval()
    reference.load_state_dict({key: torch.tensor(value) for key, value in weights.items()})
    image = np.random.default_rng(1).normal(size=(2, 65, 97, 3)).astype(np.float32)
    with torch.no_grad():
        x = torch.tensor(image.transpose(0, 3, 1, 2))
        x = reference.maxpool(reference.relu(reference.bn1(reference.conv1(x))))
        expected = {}
        for stage in range(4):
            x = getattr(reference, f"layer{stage + 1}")(x)
            expected[4 << stage] = x.numpy().transpose(0, 2, 3, 1)
    network, variables, _ = imported(name, weights, tmp_path, output_stride=output_stride)
    pyramid = jax.jit(lambda v, x: network.apply(v, x, False))(variables, image)
    for level in expected:
        assert pyramid[level].shape == expected[level].shape
        assert relative(pyramid[level], expected[level]) < 1e-4


@pytest.mark.parametrize("name, strides", [("resnet18", (16, 8)), ("resnet50", (8,))])
def test_dilated_features_are_the_undilated_ones_in_between(name, strides, tmp_path):
    """Sampled at the undilated network's places, a dilated network gives its features."""
    weights = source_weights(name)
    image = np.random.default_rng(1).normal(size=(1, 65, 97, 3)).astype(np.float32)
    apply = lambda network, variables: jax.jit(lambda v, x: network.apply(v, x, False))(variables, image)  # noqa: E731
    network, variables, _ = imported(name, weights, tmp_path)
    plain = apply(network, variables)
    for output_stride in strides:
        dilated = apply(BACKBONES[name].build(output_stride=output_stride), variables)
        for level in (16, 32):
            step = level // min(level, output_stride)
            side = 96 // min(level, output_stride) + 1
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
    ],
)
def test_dilation_rates(name, output_stride, multi_grid, last_stages):
    plan = resnet.ResNet(name, output_stride, multi_grid)._plan()
    assert [[d[0] for _, d in stage] for stage in plan[2:]] == last_stages
    product = np.prod([stride for stage in plan for stride, _ in stage])
    assert 4 * product == output_stride


def test_normalization_is_torchvisions():
    mean, std = normalization("resnet50")
    np.testing.assert_allclose(np.array(mean) / 255, (0.485, 0.456, 0.406), atol=1e-6)
    np.testing.assert_allclose(np.array(std) / 255, (0.229, 0.224, 0.225), atol=1e-6)
