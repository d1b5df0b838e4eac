"""ConvNeXt against timm, torchvision and transformers: random weights through their own files."""

import functools
import re

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file

from flax.traverse_util import flatten_dict  # noqa: E402
from safetensors.numpy import save_file as save_arrays  # noqa: E402

from hfgd_jax.models.backbones import BACKBONES  # noqa: E402
from hfgd_jax.models.backbones.convnext import VARIANTS  # noqa: E402
from hfgd_jax.weights.layouts import file_shape  # noqa: E402
from hfgd_jax.weights.pretrained import backbone_shapes, export, find_naming, load_backbone  # noqa: E402

TOLERANCE = 1e-4
SIZES = [(224, 224), (384, 384), (513, 481)]
LEVELS = (4, 8, 16, 32)


def loaded(name, path):
    """The backbone's parameters from a file; the levels' norms, where it has none, are random."""
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), backbone_shapes(name))
    rng = np.random.default_rng(3)
    for level in LEVELS:
        norm = variables["params"]["backbone"][f"norm_{level}"]
        norm["scale"] += rng.uniform(0.5, 1.5, norm["scale"].shape)
        norm["bias"] += rng.standard_normal(norm["bias"].shape)
    filled, report = load_backbone(variables, name, path)
    return filled["params"]["backbone"], report


@functools.cache
def forward(name, output_stride=32, scan_blocks=False):
    network = BACKBONES[name].build(output_stride=output_stride, scan_blocks=scan_blocks)
    return jax.jit(lambda params, x: network.apply({"params": params}, x, False))


def compare(parity, params, size, stages, run):
    """`stages`: torch's, from the image on; `run(params, x)`: ours. The levels' norms come on top."""
    x = parity.random_image(*size)
    pyramid = run(params, x)
    with torch.no_grad():
        feature = torch.from_numpy(x.transpose(0, 3, 1, 2))
        for level, stage in zip(LEVELS, stages, strict=True):
            feature = stage(feature)
            norm = [torch.from_numpy(np.array(params[f"norm_{level}"][leaf])) for leaf in ("scale", "bias")]
            last = feature.permute(0, 2, 3, 1)
            want = torch.nn.functional.layer_norm(last, last.shape[-1:], *norm, eps=1e-6)
            error = parity.relative_error(pyramid[level], want)
            print(f"{size} level {level}: {error:.1e}")
            assert error < TOLERANCE, (size, level)


def timm_stages(model):
    return [torch.nn.Sequential(model.stem, model.stages[0]), *list(model.stages)[1:]]


def only_norms_start_afresh(report):
    return sorted({path.split("/")[2] for path in report.reinitialised}) == sorted(
        f"norm_{level}" for level in LEVELS
    )


@pytest.mark.parametrize(
    "name, source, output_stride, sizes",
    [
        ("convnext_t", "convnext_tiny", 32, SIZES),
        ("convnext_t", "convnext_tiny", 16, [(224, 224)]),
        ("convnext_t", "convnext_tiny", 8, [(224, 224)]),
        ("convnext_a", "convnext_atto", 32, [(224, 224)]),  # whose dense layers are 1x1 convolutions
        ("convnext_a", "convnext_atto", 16, [(107, 169)]),
        ("convnext_a", "convnext_atto", 8, [(107, 169)]),
    ],
)
def test_timm(name, source, output_stride, sizes, parity, tmp_path):
    timm = pytest.importorskip("timm")
    theirs = parity.randomize(timm.create_model(source, output_stride=output_stride))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    params, report = loaded(name, tmp_path / "model.safetensors")
    assert (report.naming, report.missing) == ("timm", [])
    assert only_norms_start_afresh(report)
    assert report.surplus == ["head.fc.bias", "head.fc.weight", "head.norm.bias", "head.norm.weight"]
    for size in sizes:
        compare(parity, params, size, timm_stages(theirs), forward(name, output_stride))


def test_torchvision(parity, tmp_path):
    models = pytest.importorskip("torchvision.models")
    theirs = parity.randomize(models.convnext_tiny())
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    params, report = loaded("convnext_t", tmp_path / "model.safetensors")
    assert (report.naming, report.missing) == ("torchvision", [])
    assert only_norms_start_afresh(report)
    stages = [theirs.features[2 * i : 2 * i + 2] for i in range(4)]
    for size in SIZES:
        compare(parity, params, size, stages, forward("convnext_t"))


@pytest.mark.parametrize("name", ["convnext_t", "convnext_l"])
def test_transformers(name, parity, tmp_path):
    """With the levels' norms of their backbone; the large network as a scan."""
    transformers = pytest.importorskip("transformers")
    depths, widths, _ = VARIANTS[name]
    config = transformers.ConvNextConfig(
        depths=list(depths), hidden_sizes=list(widths), out_features=[f"stage{i}" for i in (1, 2, 3, 4)]
    )
    theirs = parity.randomize(transformers.ConvNextBackbone(config))
    theirs.save_pretrained(tmp_path)
    params, report = loaded(name, tmp_path / "model.safetensors")
    assert (report.naming, report.missing, report.reinitialised) == ("transformers", [], [])
    run = forward(name, scan_blocks=name == "convnext_l")
    for size in SIZES:
        x = parity.random_image(*size)
        pyramid = run(params, x)
        with torch.no_grad():
            levels = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2))).feature_maps
        for (level, feature), want in zip(pyramid.items(), levels, strict=True):
            error = parity.relative_error(feature, want.permute(0, 2, 3, 1))
            print(f"{name} transformers {size} level {level}: {error:.1e}")
            assert error < TOLERANCE, (size, level)


def test_the_classifier_of_transformers(parity, tmp_path):
    """Its names have a prefix, and it lacks the levels' norms."""
    transformers = pytest.importorskip("transformers")
    depths, widths, _ = VARIANTS["convnext_a"]
    config = transformers.ConvNextConfig(depths=list(depths), hidden_sizes=list(widths))
    theirs = parity.randomize(transformers.ConvNextForImageClassification(config))
    theirs.save_pretrained(tmp_path)
    params, report = loaded("convnext_a", tmp_path / "model.safetensors")
    assert (report.naming, report.missing) == ("transformers", [])
    assert only_norms_start_afresh(report)
    stem, stages = theirs.convnext.embeddings, list(theirs.convnext.encoder.stages)
    stages[0] = torch.nn.Sequential(stem, stages[0])
    compare(parity, params, (224, 224), stages, forward("convnext_a"))


def test_the_authors_names(parity, tmp_path):
    """What is exported in them, timm takes for a file of the authors'; and it is read back as it was."""
    timm = pytest.importorskip("timm")
    convert = timm.models.convnext.checkpoint_filter_fn
    theirs = parity.randomize(timm.create_model("convnext_atto"))
    save_file(theirs.state_dict(), tmp_path / "timm.safetensors")
    params, _ = loaded("convnext_a", tmp_path / "timm.safetensors")
    tensors = export({"params": {"backbone": params}}, find_naming("convnext_a", "facebook"), root="backbone")
    save_arrays(tensors, tmp_path / "authors.safetensors")
    again, report = loaded("convnext_a", tmp_path / "authors.safetensors")
    assert (report.naming, report.reinitialised) == ("facebook", [])
    jax.tree.map(np.testing.assert_array_equal, again, params)

    fresh = timm.create_model("convnext_atto")
    of_network = {k: torch.from_numpy(v) for k, v in tensors.items() if not k.startswith("norm")}
    found = fresh.load_state_dict(convert(of_network, fresh), strict=False)
    assert found.unexpected_keys == []
    assert all(key.startswith("head.") for key in found.missing_keys)
    for key, value in fresh.state_dict().items():
        if not key.startswith("head."):
            assert torch.equal(value, theirs.state_dict()[key]), key


@pytest.fixture(scope="module")
def dinov3(parity):
    """DINOv3's tiny network of transformers and its levels, before any norm, for one image."""
    transformers = pytest.importorskip("transformers")
    theirs = parity.randomize(transformers.DINOv3ConvNextModel(transformers.DINOv3ConvNextConfig()))
    return theirs, list(theirs.model.stages)


@pytest.mark.parametrize("saved", ["file", "state_dict"])
def test_dinov3_of_transformers(saved, dinov3, parity, tmp_path):
    """As it saves itself, and as its state dict has it in memory, below `model.`."""
    theirs, stages = dinov3
    path = tmp_path / "model.safetensors"
    theirs.save_pretrained(tmp_path) if saved == "file" else save_file(theirs.state_dict(), path)
    params, report = loaded("convnext_t", path)
    assert (report.naming, report.missing) == ("transformers_dinov3", [])
    assert only_norms_start_afresh(report)
    assert report.surplus == ["layer_norm.bias", "layer_norm.weight"]
    compare(parity, params, (224, 192), stages, forward("convnext_t"))


def test_dinov3_of_the_authors(dinov3, parity, tmp_path):
    """Their names, from which transformers converts (here backwards); the last norm lies there twice."""
    theirs, stages = dinov3
    tensors = {}
    for name, value in theirs.state_dict().items():
        name = re.sub(r"^model\.stages\.(\d)\.downsample_layers", r"downsample_layers.\1", name)
        name = re.sub(r"^model\.stages\.(\d)\.layers", r"stages.\1", name)
        name = name.replace("depthwise_conv", "dwconv").replace("pointwise_conv", "pwconv")
        tensors[name.replace("layer_norm", "norm")] = value
    last = {f"norms.3.{leaf}": tensors[f"norm.{leaf}"] for leaf in ("weight", "bias")}
    torch.save(tensors | last, tmp_path / "authors.pth")
    params, report = loaded("convnext_t", tmp_path / "authors.pth")
    assert (report.naming, report.missing) == ("facebook", [])
    assert only_norms_start_afresh(report)
    assert report.surplus == ["norm.bias", "norm.weight", "norms.3.bias", "norms.3.weight"]
    compare(parity, params, (224, 192), stages, forward("convnext_t"))


def test_dinov3_of_timm(parity, tmp_path):
    """A classifier's head without its last layer: the last norm is named as a classifier's."""
    timm = pytest.importorskip("timm")
    theirs = parity.randomize(timm.create_model("convnext_tiny.dinov3_lvd1689m"))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    params, report = loaded("convnext_t", tmp_path / "model.safetensors")
    assert (report.naming, report.missing) == ("timm", [])
    assert only_norms_start_afresh(report)
    assert report.surplus == ["head.norm.bias", "head.norm.weight"]
    mean, deviation = (np.array(theirs.pretrained_cfg[key]) * 255 for key in ("mean", "std"))
    np.testing.assert_allclose(BACKBONES["convnext_t"].normalization, (mean, deviation), rtol=1e-6)
    compare(parity, params, (224, 192), timm_stages(theirs), forward("convnext_t"))


@pytest.mark.parametrize("name", ["convnext_s", "convnext_b", "convnext_l"])
def test_dinov3_names_and_shapes_of_other_sizes(name):
    """Every tensor of transformers' network; nothing is computed."""
    transformers = pytest.importorskip("transformers")
    depths, widths, _ = VARIANTS[name]
    with torch.device("meta"):
        theirs = transformers.DINOv3ConvNextModel(
            transformers.DINOv3ConvNextConfig(depths=list(depths), hidden_sizes=list(widths))
        )
    shapes = {key.removeprefix("model."): tuple(v.shape) for key, v in theirs.state_dict().items()}
    del shapes["layer_norm.weight"], shapes["layer_norm.bias"]
    leaves = flatten_dict(backbone_shapes(name)["params"]["backbone"])
    targets = find_naming(name, "transformers_dinov3").targets
    assert shapes == {key: file_shape(target, leaves[target.path].shape) for key, target in targets.items()}
