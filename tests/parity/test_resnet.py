"""ResNets against torchvision, timm and transformers: random weights through their own files."""

import functools

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file

from hfgd_jax.models.backbones import BACKBONES  # noqa: E402
from hfgd_jax.weights.pretrained import backbone_shapes, load_backbone  # noqa: E402

TOLERANCE = 1e-4
SIZES = [(224, 224), (384, 384), (513, 481)]
SMALL = (65, 97)
LEVELS = (4, 8, 16, 32)


def loaded(name, path):
    """The backbone's variables, all of them from a file."""
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), backbone_shapes(name))
    filled, report = load_backbone(empty, name, path)
    assert (report.missing, report.reinitialised) == ([], [])
    return {collection: tree["backbone"] for collection, tree in filled.items()}, report


@functools.cache
def forward(name, output_stride=32):
    network = BACKBONES[name].build(output_stride=output_stride)
    return jax.jit(lambda variables, x: network.apply(variables, x, False))


def compare(parity, run, variables, size, features):
    """`features(x)`: torch's, from the image on, level by level."""
    x = parity.random_image(*size)
    pyramid = run(variables, x)
    with torch.no_grad():
        levels = features(torch.from_numpy(x.transpose(0, 3, 1, 2)))
    for level, want in zip(LEVELS, levels, strict=True):
        error = parity.relative_error(pyramid[level], want.permute(0, 2, 3, 1))
        print(f"{size} level {level}: {error:.1e}")
        assert error < TOLERANCE, (size, level)


def stages_of(model):
    """Of torchvision's and timm's networks, which name their parts alike."""

    def features(x):
        x, out = model.maxpool(torch.relu(model.bn1(model.conv1(x)))), []
        for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
            x = stage(x)
            out.append(x)
        return out

    return features


@pytest.mark.parametrize(
    "name, output_stride, sizes",
    [
        ("resnet18", 32, [SMALL]),
        ("resnet50", 32, SIZES),
        ("resnet50", 16, [SMALL, (224, 224)]),
        ("resnet50", 8, [SMALL, (224, 224)]),
        ("resnet101", 32, [SMALL]),
        ("resnet101", 16, [SMALL]),
        ("resnet101", 8, [SMALL]),
    ],
)
def test_torchvision(name, output_stride, sizes, parity, tmp_path):
    models = pytest.importorskip("torchvision.models")
    dilate = {"replace_stride_with_dilation": [False, output_stride == 8, output_stride <= 16]}
    options = {} if name == "resnet18" else dilate  # torchvision has no dilated basic block
    theirs = parity.randomize(getattr(models, name)(**options))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    variables, report = loaded(name, tmp_path / "model.safetensors")
    assert {key for key in report.surplus if not key.endswith("tracked")} == {"fc.bias", "fc.weight"}
    for size in sizes:
        compare(parity, forward(name, output_stride), variables, size, stages_of(theirs))


@pytest.mark.parametrize(
    "name, output_stride, sizes",
    [
        ("resnet50", 32, SIZES),
        ("resnet18", 8, [SMALL]),
        ("resnet50d", 32, SIZES),
        ("resnet50d", 16, [SMALL, (224, 224)]),
        ("resnet50d", 8, [SMALL, (224, 224)]),
        ("resnet101d", 32, [SMALL]),
    ],
)
def test_timm(name, output_stride, sizes, parity, tmp_path):
    timm = pytest.importorskip("timm")
    theirs = parity.randomize(timm.create_model(name, output_stride=output_stride))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    variables, report = loaded(name, tmp_path / "model.safetensors")
    assert report.naming == "timm"
    for size in sizes:
        compare(parity, forward(name, output_stride), variables, size, stages_of(theirs))


@pytest.mark.parametrize("name, sizes", [("resnet50", SIZES), ("resnet18", [SMALL])])
def test_transformers(name, sizes, parity, tmp_path):
    transformers = pytest.importorskip("transformers")
    basic = {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"}
    config = transformers.ResNetConfig(
        out_features=[f"stage{i}" for i in (1, 2, 3, 4)], **(basic if name == "resnet18" else {})
    )
    theirs = parity.randomize(transformers.ResNetBackbone(config))
    theirs.save_pretrained(tmp_path)
    variables, report = loaded(name, tmp_path / "model.safetensors")
    assert report.naming == "transformers"
    for size in sizes:
        compare(parity, forward(name), variables, size, lambda x: theirs(x).feature_maps)


def test_the_classifier_of_transformers(parity, tmp_path):
    """Its names have a prefix."""
    transformers = pytest.importorskip("transformers")
    theirs = parity.randomize(transformers.ResNetForImageClassification(transformers.ResNetConfig()))
    theirs.save_pretrained(tmp_path)
    variables, report = loaded("resnet50", tmp_path / "model.safetensors")
    assert report.naming == "transformers"
    assert {key for key in report.surplus if not key.endswith("tracked")} == {
        "classifier.1.bias",
        "classifier.1.weight",
    }

    def features(x):
        return theirs.resnet(x, output_hidden_states=True).hidden_states[1:]

    compare(parity, forward("resnet50"), variables, (224, 224), features)
