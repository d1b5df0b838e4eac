"""Whole models of transformers as run configs, and back."""

import pytest

from hfgd_jax import config as configs
from hfgd_jax.errors import UserError
from hfgd_jax.weights import foreign

STAGES = ["stage1", "stage2", "stage3", "stage4"]


def given(kind="convnext", /, outer=None, **fields):
    backbone = {"model_type": kind, "out_features": STAGES} | fields
    return {"model_type": "upernet", "hidden_size": 512, "backbone_config": backbone} | (outer or {})


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "convnext_t"),  # transformers' defaults
        ({"depths": [3, 3, 27, 3], "hidden_sizes": [192, 384, 768, 1536]}, "convnext_l"),
        ({"kind": "swin"}, "swin_t"),
        (
            {
                "kind": "swin",
                "embed_dim": 192,
                "depths": [2, 2, 18, 2],
                "num_heads": [6, 12, 24, 48],
                "window_size": 12,
            },
            "swin_l",
        ),
        ({"kind": "resnet"}, "resnet50"),
        ({"kind": "resnet", "depths": [3, 4, 23, 3]}, "resnet101"),
    ],
)
def test_config_of(fields, name):
    fields = dict(fields)
    config = foreign.config_of(given(fields.pop("kind", "convnext"), **fields))
    model = config.model
    assert (model.backbone.name, model.context, model.upsampler) == (name, "ppm", "upernet")
    assert (model.channels, model.context_channels, model.geometry) == (512, 512, "half_pixel")
    assert model.batch_norm_epsilon == 1e-5 and not any(model.guidance[k] for k in ("tokens", "protect"))
    assert config.data.num_classes == 2 and config.train.dtype == "float32"
    back = foreign.transformers_config(config, ("a", "b"))
    assert (
        back["backbone_config"].items()
        >= {
            key: value
            for key, value in given(fields.get("kind", "x"), **fields)["backbone_config"].items()
            if key != "model_type"
        }.items()
    )
    assert configs.differences(foreign.config_of(back), config) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model_type": "segformer"}, "model_type='segformer'"),
        (given("convnext", {"pool_scales": [1, 2]}), r"pool_scales=\[1, 2\]"),
        (
            given("convnext", hidden_sizes=[64, 128, 256, 512]),
            r"nearest is convnext_t, but for hidden_sizes=",
        ),
        (given("swin", window_size=8), r"nearest is swin_t, but for window_size=8 \(want 7\)"),
        (given("swin", use_absolute_embeddings=True), "use_absolute_embeddings=True"),
        (given("resnet", downsample_in_bottleneck=True), "downsample_in_bottleneck=True"),
        (given("convnext", out_features=["stage4"]), "out_features"),
        (given("beit"), "model_type='beit'"),
        ({"model_type": "upernet", "backbone": "resnet50", "use_timm_backbone": True}, "model_type=None"),
        (given("convnext", {"id2label": {str(i): str(i) for i in range(300)}}), "num_classes=300"),
    ],
)
def test_structures_that_we_lack_are_named(content, words):
    with pytest.raises(UserError, match=words) as error:
        foreign.config_of(content)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"geometry": "align_corners"}, "config.model.geometry='align_corners'"),
        ({"context_channels": 64}, "config.model.context_channels=64"),
        ({"guidance.axial_attention": True}, "guidance.axial_attention=True"),
        ({"backbone.output_stride": 8}, "backbone.output_stride=8"),
        ({"batch_norm_epsilon": 1e-6}, "batch_norm_epsilon"),
        ({"backbone.name": "resnet50d"}, "resnet50d"),
    ],
)
def test_runs_that_transformers_lacks_are_named(change, words):
    config = foreign.config_of(given())
    config.model.update_from_flattened_dict(change)
    with pytest.raises(UserError, match=words):
        foreign.transformers_config(config, ("a", "b"))
