"""The tables of names: every leaf of a network has one name in each of its namings."""

import jax
import numpy as np
import pytest
from flax import traverse_util

from hfgd_jax.models import BACKBONES
from hfgd_jax.models.backbones import efficientnet
from hfgd_jax.runs import system
from hfgd_jax.weights import foreign, names, pretrained
from hfgd_jax.weights.layouts import file_shape
from hfgd_jax.weights.names import namings, upernet

CONVNEXT = ["timm", "torchvision", "transformers", "facebook", "transformers_dinov3"]
SWIN = ["timm", "torchvision", "transformers", "microsoft"]
SOURCES = {
    "resnet18": ["timm", "torchvision", "transformers"],
    "resnet50": ["timm", "torchvision", "transformers"],
    "resnet101": ["timm", "torchvision", "transformers"],
    "resnet50d": ["timm"],
    "convnext_a": CONVNEXT,
    "convnext_t": CONVNEXT,
    "convnext_l": CONVNEXT,
    "swin_t": SWIN,
    "swin_l": SWIN,
    "efficientnet_b1": ["timm", "transformers", "efficientnet_pytorch"],
    "efficientnet_lite2": ["timm", "efficientnet_pytorch"],
}
WITH_LEVEL_NORMS = ("transformers", "facebook", "microsoft")  # of ConvNeXt's and Swin's namings


def test_every_backbone_is_registered():
    assert names.NAMINGS.keys() == BACKBONES.keys()


@pytest.mark.parametrize("name", SOURCES)
def test_every_leaf_has_one_name_in_every_naming(name):
    shapes = traverse_util.flatten_dict(pretrained.backbone_shapes(name))
    leaves = {(collection, *path): leaf.shape for (collection, _, *path), leaf in shapes.items()}
    norms = {path for path in leaves if path[1].startswith("norm_")}
    assert [naming.name for naming in namings(name)] == SOURCES[name]
    assert len(norms) == (8 if name.startswith(("convnext", "swin")) else 0)
    for naming in namings(name):
        parts = {}
        for key, target in naming.targets.items():
            path = (target.collection, *target.path)
            parts.setdefault(path, []).append(target.part)
            assert not naming.left_out(key), key
            assert np.prod(file_shape(target, leaves[path])) * target.part[1] == np.prod(leaves[path])
            assert (target.layout in ("conv", "linear")) == (path[-1] == "kernel"), key
            assert target.layout == "conv" or len(leaves[path]) < 4, key
        of_levels = norms if naming.name in WITH_LEVEL_NORMS else set()
        assert set(parts) == leaves.keys() - (norms - of_levels)
        for found in parts.values():
            assert sorted(found) == [(i, len(found)) for i in range(len(found))]
        optional = [naming.targets[key] for key in naming.optional]
        assert {(target.collection, *target.path) for target in optional} == of_levels


def test_names_that_differ_between_networks_and_projects():
    tables = {name: {naming.name: naming for naming in namings(name)} for name in SOURCES}
    second = tables["resnet50"]["transformers"].targets[
        "encoder.stages.1.layers.0.layer.1.convolution.weight"
    ]
    assert second.path == ("layer2_0", "conv2", "kernel")
    for name, layout in (("convnext_a", "conv"), ("convnext_t", "linear")):  # timm's atto: 1x1 convolutions
        assert tables[name]["timm"].targets["stages.2.blocks.1.mlp.fc1.weight"].layout == layout
    for name, source, classifier in (
        ("resnet18", "timm", "fc.weight"),
        ("resnet18", "transformers", "classifier.1.weight"),
        ("efficientnet_b1", "efficientnet_pytorch", "_fc.weight"),
    ):
        assert tables[name][source].left_out(classifier)


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_lite0"])
def test_an_efficientnet_is_exported_without_the_convolution_that_it_lacks(name):
    """Without expanded levels a network has no last convolution."""
    network = BACKBONES[name].build(expanded_levels=False)
    assert isinstance(network, efficientnet.EfficientNet)
    images = jax.ShapeDtypeStruct((1, 33, 33, 3), np.float32)
    shapes = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, False), images)
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    for naming in namings(name):
        absent = {key for key, target in naming.targets.items() if target.path[0] in ("head", "head_bn")}
        assert len(absent) == 5
        exported = pretrained.export(variables, naming).keys()
        assert exported == {naming.prefixes[0] + key for key in naming.targets.keys() - absent}


@pytest.mark.parametrize(("kind", "count"), [("convnext", 248), ("swin", 287)])
def test_every_leaf_of_an_upernet_has_a_name(kind, count):
    """The counts are those of transformers' files, less batch counters and auxiliary head."""
    stages = ["stage1", "stage2", "stage3", "stage4"]
    given = {"model_type": "upernet", "backbone_config": {"model_type": kind, "out_features": stages}}
    config = foreign.config_of(given)
    state = jax.eval_shape(system.make_init(system.build(config)), jax.random.PRNGKey(0))
    naming = upernet.naming(config.model.backbone.name)
    shares = dict.fromkeys(traverse_util.flatten_dict(state.model), 0.0)
    for target in naming.targets.values():
        shares[(target.collection, *target.path)] += 1 / target.part[1]
    np.testing.assert_allclose(list(shares.values()), 1)
    assert len(naming.targets) == count and not naming.optional


def test_what_an_upernet_leaves_out():
    naming = upernet.naming("swin_t")
    for name in (
        "auxiliary_head.convs.0.conv.weight",
        "decode_head.bottleneck.batch_norm.num_batches_tracked",
        "backbone.swin.layernorm.weight",
        "backbone.encoder.layers.0.blocks.0.attention.self.relative_position_index",
    ):
        assert naming.left_out(name), name
    assert not any(naming.left_out(name) for name in naming.targets)
    assert not naming.left_out("decode_head.extra.weight")
