"""Swin Transformer against transformers, timm and torchvision: random weights through their own files."""

import functools

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
save_file = pytest.importorskip("safetensors.torch").save_file

from hfgd_jax.models.backbones import BACKBONES  # noqa: E402
from hfgd_jax.models.backbones.swin import VARIANTS  # noqa: E402
from hfgd_jax.weights.pretrained import backbone_shapes, export, find_naming, load_backbone  # noqa: E402

TOLERANCE = 1e-4
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def loaded(name, path):
    """The backbone's variables from a file; the levels' norms, where it has none, are as they start."""
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), backbone_shapes(name))
    for key, norm in empty["params"]["backbone"].items():
        if key.startswith("norm_"):
            norm["scale"] += 1
    return load_backbone(empty, name, path)


@functools.cache
def forward(name):
    network = BACKBONES[name].build()
    return jax.jit(lambda params, x: network.apply({"params": params}, x, train=False))


def backbone_of_transformers(name, size):
    variant = VARIANTS[name]
    config = transformers.SwinConfig(
        image_size=size,
        embed_dim=variant.width,
        depths=list(variant.depths),
        num_heads=list(variant.heads),
        window_size=variant.window,
        out_features=STAGES,
    )
    return transformers.SwinBackbone(config)


def layer_normed(feature):
    """What a level's norm does before it is trained; of `[b, h, w, c]`."""
    return torch.nn.functional.layer_norm(feature, feature.shape[-1:], eps=1e-5)


@pytest.mark.parametrize(
    "name, sizes",
    [("swin_t", [(224, 224), (384, 384), (513, 481)]), ("swin_l", [(384, 384), (513, 481)])],
    ids=["swin_t", "swin_l"],
)
def test_transformers(name, sizes, parity, tmp_path):
    theirs = parity.randomize(backbone_of_transformers(name, 384))
    theirs.save_pretrained(tmp_path)
    variables, report = loaded(name, tmp_path / "model.safetensors")
    assert (report.naming, report.missing) == ("transformers", [])
    assert report.reinitialised == []
    assert report.surplus == ["swin.layernorm.bias", "swin.layernorm.weight"]
    for size in sizes:
        x = parity.random_image(*size)
        ours = forward(name)(variables["params"]["backbone"], x)
        with torch.no_grad():
            levels = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2))).feature_maps
        for (level, feature), want in zip(ours.items(), levels, strict=True):
            error = parity.relative_error(feature, want.permute(0, 2, 3, 1))
            print(f"{name} transformers {size} level {level}: {error:.1e}")
            assert error < TOLERANCE, (size, level)


def test_transformers_reads_what_is_exported(parity, tmp_path):
    theirs = parity.randomize(backbone_of_transformers("swin_t", 224))
    theirs.save_pretrained(tmp_path / "theirs")
    variables, _ = loaded("swin_t", tmp_path / "theirs" / "model.safetensors")
    exported = export(variables, find_naming("swin_t", "transformers"), root="backbone")
    (tmp_path / "ours").mkdir()
    save_file(
        {k: torch.from_numpy(v.copy()) for k, v in exported.items()}, tmp_path / "ours/model.safetensors"
    )
    theirs.config.save_pretrained(tmp_path / "ours")
    again = transformers.SwinBackbone.from_pretrained(tmp_path / "ours").state_dict()
    for name, value in theirs.state_dict().items():
        if not name.startswith("swin.layernorm."):
            assert torch.equal(again[name], value), name


def test_timm_and_the_authors_names(parity, tmp_path):
    """224 only, where nothing is padded: timm pads after the shift."""
    timm = pytest.importorskip("timm")
    from timm.models.swin_transformer import checkpoint_filter_fn

    def create(**options):
        return timm.create_model("swin_tiny_patch4_window7_224", always_partition=True, **options)

    theirs = parity.randomize(create())
    for module in theirs.modules():
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()  # the masks, which are random as well now
    save_file(theirs.state_dict(), tmp_path / "timm.safetensors")
    variables, report = loaded("swin_t", tmp_path / "timm.safetensors")
    assert report.naming == "timm"
    assert report.surplus == ["head.fc.bias", "head.fc.weight", "norm.bias", "norm.weight"]
    x = parity.random_image(224, 224)
    ours = forward("swin_t")(variables["params"]["backbone"], x)
    with torch.no_grad():
        levels = theirs.forward_intermediates(torch.from_numpy(x.transpose(0, 3, 1, 2)))[1]
    for (level, feature), want in zip(ours.items(), levels, strict=True):
        error = parity.relative_error(feature, layer_normed(want.permute(0, 2, 3, 1)))
        print(f"swin_t timm level {level}: {error:.1e}")
        assert error < TOLERANCE, level

    authors = export(variables, find_naming("swin_t", "microsoft"), root="backbone")
    norms = {name for name in authors if name.startswith("norm")}
    assert len(norms) == 8
    kept = {name: torch.from_numpy(value.copy()) for name, value in authors.items() if name not in norms}
    converted = checkpoint_filter_fn(kept, create(num_classes=0))
    for name, value in theirs.state_dict().items():
        if not name.startswith(("head.", "norm.")):
            assert torch.equal(converted.pop(name), value), name
    assert not converted


@pytest.mark.parametrize("size", [(384, 384), (513, 481)])
def test_torchvision(size, parity, tmp_path):
    """From 384 on: at 224 one window covers level 32, which torchvision then does not shift."""
    torchvision = pytest.importorskip("torchvision")
    theirs = parity.randomize(torchvision.models.swin_t())
    save_file(theirs.state_dict(), tmp_path / "torchvision.safetensors")
    variables, report = loaded("swin_t", tmp_path / "torchvision.safetensors")
    assert report.naming == "torchvision"
    assert sum(name.endswith(".relative_position_index") for name in report.surplus) == 12
    assert len(report.surplus) == 12 + 4
    x = parity.random_image(*size)
    ours = forward("swin_t")(variables["params"]["backbone"], x)
    image = torch.from_numpy(x.transpose(0, 3, 1, 2))
    # torchvision's patch embedding does not pad
    image = torch.nn.functional.pad(image, (0, -size[1] % 4, 0, -size[0] % 4))
    with torch.no_grad():
        for i, layer in enumerate(theirs.features):
            image = layer(image)
            if i % 2:
                level = 4 << (i // 2)
                error = parity.relative_error(ours[level], layer_normed(image))
                print(f"swin_t torchvision {size} level {level}: {error:.1e}")
                assert error < TOLERANCE, level
