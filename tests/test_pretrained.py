"""Weight files: what is loaded, what is refused and how it is said."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hfgd_jax import config as configs
from hfgd_jax.errors import UserError
from hfgd_jax.models import build_model
from hfgd_jax.models.backbones import BACKBONES
from hfgd_jax.pretrained import load_backbone

REAL = Path(__file__).parents[2] / "shared" / "weights" / "resnet18_tiny_imagenet.safetensors"


@pytest.fixture(scope="module")
def variables():
    """Of a small HFGD on ResNet-18; -1 everywhere."""
    config = configs.default()
    configs.set_tiny(config)
    configs.set_method(config, "hfgd")
    model = build_model(config.model, 5, "float32")
    images = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.uint8)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    return jax.tree.map(lambda s: jnp.full(s.shape, -1, s.dtype), shapes)


@pytest.fixture
def source(variables):
    """A file's tensors as torchvision names them: kernels in float16, counters, a classifier."""
    rng, tensors = np.random.default_rng(0), {}
    for name, target in BACKBONES["resnet18"].namings()[0].targets.items():
        leaf = variables[target.collection]["backbone"]
        for key in target.path:
            leaf = leaf[key]
        shape, dtype = leaf.shape, np.float32
        if target.path[-1] == "kernel":
            window = shape[:-2] or (1, 1)
            shape, dtype = (shape[-1], shape[-2], *window), np.float16
        tensors[name] = rng.normal(size=shape).astype(dtype)
    tensors["bn1.num_batches_tracked"] = np.array(3, np.int64)
    tensors["fc.weight"] = np.zeros((7, 512), np.float16)
    tensors["fc.bias"] = np.zeros(7, np.float32)
    return tensors


def test_every_tensor_lands_in_its_place(variables, source, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(source, path)
    loaded, report = load_backbone(variables, "resnet18", path)
    backbone = {kind: loaded[kind]["backbone"] for kind in loaded}
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(loaded))
    kernel = backbone["params"]["layer2_0"]["conv1"]["kernel"]
    np.testing.assert_array_equal(
        kernel, source["layer2.0.conv1.weight"].transpose(2, 3, 1, 0).astype(np.float32)
    )
    kernel = backbone["params"]["layer2_0"]["downsample_conv"]["kernel"]
    np.testing.assert_array_equal(
        kernel, source["layer2.0.downsample.0.weight"][:, :, 0, 0].T.astype(np.float32)
    )
    norm = {**backbone["params"]["layer4_1"]["bn2"], **backbone["batch_stats"]["layer4_1"]["bn2"]}
    for ours, theirs in (
        ("scale", "weight"),
        ("bias", "bias"),
        ("mean", "running_mean"),
        ("var", "running_var"),
    ):
        np.testing.assert_array_equal(norm[ours], source[f"layer4.1.bn2.{theirs}"])
    assert not any(np.all(leaf == -1) for leaf in jax.tree.leaves(backbone))
    assert report.missing == [] and len(report.loaded) == 100
    assert report.surplus == ["bn1.num_batches_tracked", "fc.bias", "fc.weight"]
    assert "100 tensors loaded" in report.summary() and "3 left out" in report.summary()
    rest = {kind: {k: v for k, v in tree.items() if k != "backbone"} for kind, tree in loaded.items()}
    assert all(np.all(leaf == -1) for leaf in jax.tree.leaves(rest))
    assert len(report.reinitialised) == len(jax.tree.leaves(rest))
    assert "params/class_tokens/kernel" in report.reinitialised
    assert np.all(variables["params"]["backbone"]["conv1"]["kernel"] == -1)


def test_missing_surplus_and_misshaped_names_are_listed(variables, source, tmp_path):
    del source["layer3.1.bn1.running_var"]
    source["layer5.0.conv1.weight"] = np.zeros((1, 1, 1, 1), np.float32)
    source["conv1.weight"] = np.zeros((64, 3, 3, 3), np.float32)
    path = tmp_path / "weights.safetensors"
    save_file(source, path)
    with pytest.raises(UserError) as error:
        load_backbone(variables, "resnet18", path)
    message = str(error.value)
    for part in (
        str(path),
        "1 missing: layer3.1.bn1.running_var",
        "1 surplus: layer5.0.conv1.weight",
        "conv1.weight (64, 3, 3, 3) (want (64, 3, 7, 7))",
        "config.model.backbone.name",
    ):
        assert part in message
    assert "\n" not in message


def test_another_networks_file_is_refused(variables, source, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({name: value for name, value in source.items() if not name.startswith("layer1")}, path)
    with pytest.raises(UserError, match=r"20 missing: .* and 8 more"):
        load_backbone(variables, "resnet18", path)


@pytest.mark.parametrize("damage", ["absent", "truncated", "text", "format", "empty"])
def test_bad_files(damage, variables, source, tmp_path):
    path = tmp_path / ("weights.h5" if damage == "format" else "weights.safetensors")
    if damage != "absent":
        save_file(source, path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if damage == "text":
        path.write_text("<!DOCTYPE html> not weights, but a page that says so")
    if damage == "empty":
        path.write_bytes(b"")
    with pytest.raises(UserError) as error:
        load_backbone(variables, "resnet18", path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_torch_files(variables, source, tmp_path):
    path = tmp_path / "weights.pth"
    try:
        import torch
    except ImportError:
        path.write_bytes(b"something")
        with pytest.raises(UserError, match="needs torch"):
            load_backbone(variables, "resnet18", path)
        return
    torch.save({name: torch.tensor(value) for name, value in source.items()}, path)
    loaded, report = load_backbone(variables, "resnet18", path)
    assert len(report.loaded) == 100
    kernel = source["conv1.weight"].transpose(2, 3, 1, 0).astype(np.float32)
    np.testing.assert_array_equal(loaded["params"]["backbone"]["conv1"]["kernel"], kernel)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        load_backbone(variables, "resnet18", path)
    torch.save({"state_dict": {}, "epoch": 3}, path)
    with pytest.raises(UserError, match="flat dictionary"):
        load_backbone(variables, "resnet18", path)


def test_the_real_file(variables):
    if not REAL.is_file():
        pytest.skip("the shared ResNet-18 weights are not here")
    loaded, report = load_backbone(variables, "resnet18", REAL)
    tensors = load_file(REAL)
    assert len(report.loaded) + len(report.surplus) == len(tensors) == 122
    kernel = loaded["params"]["backbone"]["conv1"]["kernel"]
    np.testing.assert_array_equal(kernel, tensors["conv1.weight"].transpose(2, 3, 1, 0).astype(np.float32))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(loaded))
