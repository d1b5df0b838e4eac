"""Weight files: what is loaded, what is refused and how it is said."""

import json
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from hfgd_jax import config as configs
from hfgd_jax.errors import UserError
from hfgd_jax.models import build_model
from hfgd_jax.models.backbones import BACKBONES, convnext, swin
from hfgd_jax.weights import files, names, pretrained
from hfgd_jax.weights.layouts import file_shape
from hfgd_jax.weights.names import namings
from hfgd_jax.weights.pretrained import export, find_naming, load_backbone

REAL = Path(__file__).parents[3] / "shared" / "weights" / "resnet18_tiny_imagenet.safetensors"
RAMP = (0.3411072, 2.3294461, 4.1865916, 6.0, 7.8134089, 9.6705542, 11.6588907)


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


@pytest.fixture(scope="module", autouse=True)
def small_networks():
    """`convnext_x` and `swin_x`: small, and of the depths of `convnext_a` and `swin_t`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            convnext.VARIANTS, "convnext_x", convnext.ConvNeXtVariant((2, 2, 6, 2), (8, 12, 16, 20), 0.0)
        )
        patch.setitem(swin.VARIANTS, "swin_x", swin.SwinVariant((2, 2, 6, 2), 8, (1, 2, 2, 4), 4))
        patch.setitem(BACKBONES, "convnext_x", convnext.entry("convnext_x"))
        patch.setitem(BACKBONES, "swin_x", swin.entry("swin_x"))
        patch.setitem(names.NAMINGS, "convnext_x", names.convnext.namings)
        patch.setitem(names.NAMINGS, "swin_x", names.swin.namings)
        yield


def blank(name):
    """Variables of a backbone, -1 everywhere."""
    return jax.tree.map(lambda s: np.full(s.shape, -1, np.float32), pretrained.backbone_shapes(name))


def tensors_of(name, naming, dtype=np.float32, prefix=None):
    """A file's tensors in a naming, random."""
    rng, entry = np.random.default_rng(0), find_naming(name, naming)
    flat = traverse_util.flatten_dict(pretrained.backbone_shapes(name))
    prefix = entry.prefixes[0] if prefix is None else prefix
    return {
        prefix + key: rng.standard_normal(
            file_shape(target, flat[target.collection, "backbone", *target.path].shape), np.float32
        ).astype(dtype)
        for key, target in entry.targets.items()
    }


def load(name, tensors, folder, file="weights.safetensors"):
    save_file(tensors, folder / file)
    return load_backbone(blank(name), name, folder / file)


def refusal(name, tensors, folder):
    with pytest.raises(UserError) as error:
        load(name, tensors, folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def resnet18():
    return tensors_of("resnet18", "timm", np.float16)


@pytest.fixture
def source(resnet18):
    """A file's tensors as torchvision names them: in float16, with counters and a classifier."""
    return resnet18 | {
        "bn1.num_batches_tracked": np.array(3, np.int64),
        "fc.weight": np.zeros((7, 512), np.float16),
        "fc.bias": np.zeros(7, np.float32),
    }


def test_every_tensor_lands_in_its_place(variables, source, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(source, path)
    loaded, report = load_backbone(variables, "resnet18", path)
    backbone = {kind: loaded[kind]["backbone"] for kind in loaded}
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(loaded))
    kernel = backbone["params"]["layer2_0"]["conv1"]["kernel"]
    assert isinstance(kernel, jax.Array)
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
    assert report.missing == [] and len(report.loaded) == 100 and report.naming == "timm"
    assert report.surplus == ["bn1.num_batches_tracked", "fc.bias", "fc.weight"]
    assert report.notes == ["100 tensors cast from float16 to float32"]
    for part in ("100 tensors loaded in timm's naming", "3 left out", "100 tensors cast from float16"):
        assert part in report.summary()
    assert "\n" not in report.summary()
    lines = report.details().splitlines()
    assert "loaded          conv1.weight -> params/backbone/conv1/kernel" in lines
    assert "left out        fc.bias" in lines and lines[-1] == report.summary()
    assert "re-initialised  params/class_tokens/kernel" in lines
    rest = {kind: {k: v for k, v in tree.items() if k != "backbone"} for kind, tree in loaded.items()}
    assert all(np.all(leaf == -1) for leaf in jax.tree.leaves(rest))
    assert len(report.reinitialised) == len(jax.tree.leaves(rest))
    assert np.all(variables["params"]["backbone"]["conv1"]["kernel"] == -1)


def test_missing_surplus_and_misshaped_names_are_listed(source, tmp_path):
    del source["layer3.1.bn1.running_var"]
    source["layer5.0.conv1.weight"] = np.zeros((1, 1, 1, 1), np.float32)
    source["conv1.weight"] = np.zeros((64, 3, 3, 3), np.float32)
    source["bn1.bias"] = np.zeros(64, np.int8)
    source["bn1.weight"] = np.full(64, np.nan, np.float32)
    message = refusal("resnet18", source, tmp_path)
    for part in (
        str(tmp_path / "weights.safetensors"),
        "1 missing: layer3.1.bn1.running_var",
        "1 surplus: layer5.0.conv1.weight",
        "conv1.weight (64, 3, 3, 3) (want (64, 3, 7, 7))",
        "1 that are no floats: bn1.bias (int8)",
        "1 with infinities or NaNs: bn1.weight",
        "config.model.backbone.name",
    ):
        assert part in message


def test_the_first_names_and_a_count_are_listed(source, tmp_path):
    message = refusal("resnet18", {k: v for k, v in source.items() if not k.startswith("layer1")}, tmp_path)
    assert "20 missing: layer1.0.bn1.bias" in message and "and 8 more" in message


@pytest.mark.parametrize(
    ("name", "naming"),
    [
        (name, naming.name)
        for name in ("resnet18", "convnext_a", "swin_t", "efficientnet_b0")
        for naming in namings(name)
    ],
)
def test_file_to_ours_to_file_is_bit_exact(name, naming, tmp_path):
    name = {"convnext_a": "convnext_x", "swin_t": "swin_x"}.get(name, name)
    tensors = tensors_of(name, naming)
    variables, report = load(name, tensors, tmp_path)
    keys = {entry.name: entry.targets.keys() for entry in namings(name)}
    assert report.naming == next(other for other in keys if keys[other] == keys[naming])
    assert report.loaded == sorted(tensors) and not report.notes
    back = export(variables, find_naming(name, naming), root="backbone")
    assert back.keys() == tensors.keys()
    for key, value in tensors.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)
        assert back[key].flags.c_contiguous and back[key].dtype == np.float32


def test_a_fused_leaf_is_filled_part_by_part(tmp_path):
    tensors = tensors_of("swin_x", "transformers")
    variables, _ = load("swin_x", tensors, tmp_path)
    block = "encoder.layers.1.blocks.0.attention.self."
    parts = [tensors[f"{block}{part}.weight"].T for part in ("query", "key", "value")]
    qkv = variables["params"]["backbone"]["stage2_0"]["qkv"]
    np.testing.assert_array_equal(qkv["kernel"], np.concatenate(parts, axis=1))
    timm = export(variables, find_naming("swin_x", "timm"), root="backbone")
    np.testing.assert_array_equal(timm["layers.1.blocks.0.attn.qkv.weight"], np.concatenate(parts, axis=1).T)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "backbone.", "model.backbone.", "swin."])
def test_prefixes_are_found_out(prefix, tmp_path):
    tensors = tensors_of("swin_x", "transformers", prefix=prefix)
    variables, report = load("swin_x", tensors, tmp_path)
    assert report.naming == "transformers" and len(report.loaded) == len(tensors)
    patch = variables["params"]["backbone"]["stem"]["bias"]
    np.testing.assert_array_equal(patch, tensors[f"{prefix}embeddings.patch_embeddings.projection.bias"])


def test_mixed_prefixes_are_refused(source, tmp_path):
    mixed = {(f"module.{k}" if k.startswith("layer4") else k): v for k, v in source.items()}
    message = refusal("resnet18", mixed, tmp_path)
    assert "25 missing: layer4.0.bn1.bias" in message and "surplus: module.layer4.0.bn1.bias" in message


def test_a_segmentation_models_heads_are_left_out(tmp_path):
    tensors = tensors_of("convnext_x", "transformers", prefix="backbone.")
    heads = {name: np.zeros(3, np.float32) for name in ("decode_head.a.weight", "auxiliary_head.b")}
    _, report = load("convnext_x", tensors | heads, tmp_path)
    assert report.surplus == sorted(heads) and "heads are left out" in report.summary()
    beside = {"projector.weight": np.zeros(3, np.float32)}
    assert "1 surplus: projector.weight" in refusal("convnext_x", tensors | beside, tmp_path)


def test_optional_norms_may_lack_together_but_not_in_part(tmp_path):
    tensors = tensors_of("swin_x", "transformers", prefix="swin.")
    lacking = {k: v for k, v in tensors.items() if not k.startswith("swin.hidden_states_norms")}
    variables, report = load("swin_x", lacking, tmp_path)
    assert len(report.loaded) == len(tensors) - 8 and report.missing == []
    assert len(report.reinitialised) == 8 and "params/backbone/norm_16/bias" in report.reinitialised
    assert "none of the 8 optional tensors" in report.summary()
    assert np.all(variables["params"]["backbone"]["norm_4"]["scale"] == -1)
    del tensors["swin.hidden_states_norms.stage2.bias"]
    assert "1 missing: swin.hidden_states_norms.stage2.bias" in refusal("swin_x", tensors, tmp_path)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float64, np.float16])
def test_other_floats_become_float32_and_say_so(dtype, tmp_path):
    tensors = tensors_of("convnext_x", "timm", dtype)
    variables, report = load("convnext_x", tensors, tmp_path)
    bias = variables["params"]["backbone"]["stem"]["bias"]
    assert bias.dtype == np.float32
    np.testing.assert_array_equal(bias, tensors["stem.0.bias"].astype(np.float32))
    name = np.dtype(dtype).name
    assert report.notes[0] == f"{len(tensors)} tensors cast from {name} to float32"


def test_position_biases_are_resized_to_the_window(tmp_path):
    """A ramp over 13 rows to 7; the numbers are those of torch's bicubic interpolation."""
    tensors = tensors_of("swin_x", "timm")
    side = 2 * 7 - 1
    ramp = np.arange(side, dtype=np.float32)[:, None] + np.zeros((side, side), np.float32)
    for name in [name for name in tensors if name.endswith("relative_position_bias_table")]:
        heads = tensors[name].shape[1]
        tensors[name] = np.stack([ramp.ravel() + 100 * h for h in range(heads)], axis=1)
    variables, report = load("swin_x", tensors, tmp_path)
    assert "12 tensors of position biases resized to the window here" in report.notes
    table = variables["params"]["backbone"]["stage2_1"]["position_bias"].reshape(7, 7, 2)
    np.testing.assert_allclose(table[..., 1], table[..., 0] + 100, atol=1e-4)
    np.testing.assert_allclose(table[:, 0, 0], table[:, 6, 0], atol=1e-5)
    np.testing.assert_allclose(table[:, 3, 0], RAMP, atol=1e-5)
    tensors["layers.0.blocks.0.attn.relative_position_bias_table"] = np.zeros((36, 1), np.float32)
    assert "(36, 1) (want (49, 1))" in refusal("swin_x", tensors, tmp_path)


def test_another_backbones_file_is_named(source, tmp_path):
    message = refusal("resnet18", tensors_of("convnext_x", "torchvision"), tmp_path)
    assert "looks like convnext_x in torchvision's naming" in message
    assert "config.model.backbone.name='convnext_x'" in message
    message = refusal("convnext_a", tensors_of("convnext_x", "transformers"), tmp_path)  # the same names
    assert "looks like convnext_x in transformers' naming" in message
    assert "looks like resnet18 in timm's naming" in refusal("swin_x", source, tmp_path)
    vit = {f"blocks.{i}.attn.qkv.weight": np.zeros((3, 1), np.float32) for i in range(12)}
    message = refusal("swin_x", vit, tmp_path)
    assert "nor of another backbone here (0 of" in message and "blocks.0.attn.qkv.weight" in message


@pytest.mark.parametrize("damage", ["absent", "truncated", "text", "format", "empty", "empty folder"])
def test_bad_files(damage, variables, source, tmp_path):
    path = tmp_path / ("weights.h5" if damage == "format" else "weights.safetensors")
    if damage == "empty folder":
        path.mkdir()
    elif damage != "absent":
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


def test_folders_and_shards(tmp_path):
    tensors = tensors_of("convnext_x", "transformers")
    whole = tmp_path / "whole"
    whole.mkdir()
    _, report = load("convnext_x", tensors, whole, "model.safetensors")
    _, again = load_backbone(blank("convnext_x"), "convnext_x", whole)
    assert again.loaded == report.loaded
    (shards := tmp_path / "shards").mkdir()
    keys, index = sorted(tensors), {}
    for i, part in enumerate((keys[:50], keys[50:])):
        save_file({key: tensors[key] for key in part}, shards / f"model-{i}.safetensors")
        index |= dict.fromkeys(part, f"model-{i}.safetensors")
    listing = shards / files.INDEX
    listing.write_text(json.dumps({"weight_map": index}))
    for path in (shards, listing):
        assert load_backbone(blank("convnext_x"), "convnext_x", path)[1].loaded == report.loaded
    for change, words in (
        ({"extra": "model-1.safetensors"}, "extra not in the shards"),
        ({"extra": "../whole/model.safetensors"}, "not beside it"),
    ):
        listing.write_text(json.dumps({"weight_map": index | change}))
        with pytest.raises(UserError, match=words):
            files.read(shards)
    listing.write_text("[1, 2]")
    with pytest.raises(UserError, match="no JSON object"):
        files.read(shards)


class Trap:
    """Unpickled by a careless reader it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_code_in_a_pickle_is_never_run(suffix, variables, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / f"weights{suffix}"
    path.write_bytes(pickle.dumps({"conv1.weight": Trap(marker)}))
    with pytest.raises(UserError) as error:
        load_backbone(variables, "resnet18", path)
    assert not marker.exists() and str(path) in str(error.value) and "\n" not in str(error.value)
    expected = "pickle" if suffix == ".safetensors" else "never run"
    assert expected in str(error.value)
    pickle.loads(path.read_bytes())  # the trap does work
    assert marker.exists()


def test_writing(tmp_path):
    path = tmp_path / "new" / "weights.safetensors"
    files.write(path, {"a": np.arange(6, dtype=np.float32).reshape(2, 3).T})
    np.testing.assert_array_equal(load_file(path)["a"], [[0, 3], [1, 4], [2, 5]])
    before = path.read_bytes()
    with pytest.raises(UserError, match="--overwrite"):
        files.write(path, {"a": np.zeros(2, np.float32)})
    assert path.read_bytes() == before
    files.write(path, {"a": np.zeros(2, np.float32)}, overwrite=True)
    assert load_file(path)["a"].shape == (2,) and [p.name for p in path.parent.iterdir()] == [path.name]
    with pytest.raises(UserError, match="cannot be written"):
        files.write(path / "below" / "file.safetensors", {"a": np.zeros(2, np.float32)})


def test_an_unknown_naming_is_refused():
    with pytest.raises(UserError, match="'mmseg': swin_x has none; one of timm, torchvision, transformers"):
        find_naming("swin_x", "mmseg")


def test_the_real_file(variables):
    if not REAL.is_file():
        pytest.skip("the shared ResNet-18 weights are not here")
    loaded, report = load_backbone(variables, "resnet18", REAL)
    tensors = load_file(REAL)
    assert len(report.loaded) + len(report.surplus) == len(tensors) == 122
    kernel = loaded["params"]["backbone"]["conv1"]["kernel"]
    np.testing.assert_array_equal(kernel, tensors["conv1.weight"].transpose(2, 3, 1, 0).astype(np.float32))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(loaded))
