"""Every field has a default, a type and a check, and a bad one is named."""

import json
import re

import pytest

from hfgd_jax import config as configuration
from hfgd_jax.errors import UserError


@pytest.mark.parametrize("method", configuration.METHODS)
@pytest.mark.parametrize("tiny", [False, True])
def test_methods_are_valid(method, tiny):
    config = configuration.default()
    configuration.set_method(config, method)
    configuration.set_plain(config)
    if tiny:
        configuration.set_tiny(config)
    configuration.validate(config)


def test_setting_a_method_resets_the_fields_of_the_one_before():
    config = configuration.default()
    configuration.set_method(config, "sa_car_d8")
    configuration.set_method(config, "hfgd")
    expected = configuration.default()
    configuration.set_method(expected, "hfgd")
    assert configuration.differences(config, expected) == []
    assert config.model.backbone.output_stride == 32
    configuration.set_method(config, "fcn")
    assert config.model.guidance == configuration.default().model.guidance


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("model.upsampler", "fpm", "config.model.upsampler='fpm': unknown; one of none, sfpn, u_sfpn"),
        ("model.backbone.name", "vgg", "config.model.backbone.name='vgg'"),
        ("model.output_stride", 3, "config.model.output_stride"),
        ("model.attention_heads", 7, "must divide config.model.channels=256"),
        ("model.guidance.residual", True, "residual=True: needs guidance.tokens=True"),
        ("model.guidance.stop_gradient", False, "stop_gradient=False: needs guidance.tokens=True"),
        ("data.crop", (513,), "config.data.crop=(513,): want two numbers"),
        ("data.crop", (5, 513), "config.data.crop height=5"),
        ("data.scale_range", (2.0, 0.5), "config.data.scale_range=(2.0, 0.5)"),
        ("data.flip", 2.0, "config.data.flip=2.0: want a value from 0.0 to 1.0"),
        ("train.accumulate", 3, "config.train.accumulate=3: must divide config.train.batch_size=16"),
        ("train.dtype", "float16", "config.train.dtype='float16': unknown; one of bfloat16, float32"),
        ("optim.learning_rate", -1.0, "config.optim.learning_rate=-1.0"),
        ("optim.warmup_steps", -1, "config.optim.warmup_steps=-1"),
        ("optim.backbone_rate", -1.0, "config.optim.backbone_rate=-1.0: want a value from 0.0 to 100.0"),
        ("train.stall_timeout", -1.0, "config.train.stall_timeout=-1.0: want a value from 0.0 to"),
        ("train.ema_decay", 1.0, "config.train.ema_decay=1.0: want a value from 0.0 to below 1.0"),
        ("eval.branch", "teacher", "config.eval.branch='teacher': unknown; one of prediction, guide, probe"),
        ("eval.branch", "probe", "config.eval.branch='probe': needs config.model.guidance.probe=True"),
        ("mesh.data", 0, "config.mesh.data=0"),
        ("loss.car", -1.0, "config.loss.car=-1.0"),
        ("loss.balance", "inverse", "config.loss.balance='inverse': unknown; one of none, median_frequency"),
        ("loss.class_weights", (1.0, 2.0), "config.loss.class_weights=(1.0, 2.0): 2 of them, but"),
        ("loss.class_weights", (1, 0, 1, 1, 1, 1, 1, 1, 1), "want numbers above 0"),
        ("loss.class_weights", (1.0,) * 8 + (float("inf"),), "want numbers above 0"),
        ("loss.class_weights", (1.0,) * 8 + (float("nan"),), "want numbers above 0"),
        ("loss.class_weights", (1.0,) * 8 + ("2",), "want numbers above 0"),
        ("loss.hard_pixels", 0.0, "config.loss.hard_pixels=0.0: want a share above 0, to 1"),
        ("loss.hard_pixels", 1.5, "config.loss.hard_pixels=1.5"),
        ("loss.divisor", "some", "config.loss.divisor='some': unknown; one of valid, all"),
    ],
)
def test_a_bad_value_raises_an_error_that_names_it(field, value, says):
    config = configuration.default()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError) as caught:
        configuration.validate(config)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("backbone", "fields", "says"),
    [
        ("resnet50", {"backbone.drop_path": 0.1}, "backbone.drop_path=0.1: ResNets have no such thing"),
        ("resnet50", {"backbone.scan_blocks": True}, "backbone.scan_blocks=True: ConvNeXt and Swin alone"),
        ("convnext_t", {"backbone.multi_grid": True}, "multi_grid=True: ResNets alone have it"),
        ("convnext_t", {"geometry": "align_corners"}, "set config.model.geometry='half_pixel'"),
        ("efficientnet_b0", {"backbone.multi_grid": True}, "multi_grid=True: ResNets alone have it"),
        ("efficientnet_b0", {"backbone.scan_blocks": True}, "scan_blocks=True: ConvNeXt and Swin alone"),
        ("swin_t", {"backbone.batch_norm_epsilon": 1e-3}, "=0.001: swin_t has no batch normalisation"),
        ("resnet50", {"backbone.batch_norm_epsilon": 0.0}, "epsilon=0.0: want a value from 1e-08 to 1.0"),
        ("resnet50", {"backbone.normalization": "none"}, "'none': unknown; one of imagenet, half, lite"),
        ("swin_t", {"backbone.output_stride": 8}, "(Swin has no dilation)=8: unknown; one of 32"),
        ("swin_t", {"backbone.drop_path": 1.0}, "drop_path=1.0: want a value from 0.0 to 0.99"),
        ("resnet50", {"upsampler": "fapn", "channels": 12}, "channels=12: upsampler='fapn'"),
    ],
)
def test_a_field_that_a_backbone_or_upsampler_lacks_is_refused(backbone, fields, says):
    config = configuration.default()
    configuration.set_backbone(config, backbone)
    configuration.validate(config)
    config.model.update_from_flattened_dict(fields)
    with pytest.raises(UserError) as caught:
        configuration.validate(config)
    assert says in str(caught.value)


def test_conflicting_loss_fields_are_refused():
    config = configuration.default()
    config.loss.update({"hard_pixels": 0.5, "focal_gamma": 2.0})
    with pytest.raises(
        UserError, match=r"hard_pixels=0\.5: the focal loss \(config\.loss\.focal_gamma=2\.0\)"
    ):
        configuration.validate(config)
    config.loss.update({"hard_pixels": 1.0, "balance": "median_frequency"})
    configuration.validate(config)
    config.loss.class_weights = tuple(range(1, 10))
    with pytest.raises(UserError, match=r"balance='median_frequency': config\.loss\.class_weights are given"):
        configuration.validate(config)
    config.loss.update({"balance": "none", "divisor": "all"})
    with pytest.raises(UserError, match=r"divisor='all': with class weights the divisor is the sum"):
        configuration.validate(config)
    config.loss.divisor = "valid"
    configuration.validate(config)
    back = configuration.from_json(configuration.to_json(config))
    assert back.loss.class_weights == tuple(range(1, 10))
    configuration.set_tiny(config)
    assert config.loss.class_weights == tuple(range(1, 10))
    configuration.set_without_data(config)
    assert config.loss.class_weights == ()


@pytest.mark.parametrize("backbone", configuration.BACKBONES)
def test_tiny_keeps_the_family_of_the_backbone(backbone):
    config = configuration.default()
    configuration.set_backbone(config, backbone)
    geometry = config.model.geometry
    configuration.set_tiny(config)
    configuration.validate(config)
    assert config.model.backbone.name[:4] == backbone[:4] and config.model.geometry == geometry


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("optim.lr", "--config.optim.lr: no such field; did you mean config.optim.learning_rate"),
        ("train.step", "did you mean config.train.steps"),
        ("qqq", "--config.qqq: no such field; --help lists all"),
        ("checkpoint", "is a group of fields; name one of every, keep"),
    ],
)
def test_a_field_that_there_is_not_is_named_with_the_nearest(name, says):
    configuration.check_field("optim.learning_rate")
    with pytest.raises(UserError, match=re.escape(says)):
        configuration.check_field(name)


def test_tiny_keeps_weights_of_its_own_backbone_and_refuses_others():
    for backbone in ("resnet18", "resnet50"):
        config = configuration.default()
        configuration.set_backbone(config, backbone)
        config.model.backbone.weights = "x.safetensors"
        if backbone == "resnet18":
            configuration.set_tiny(config)
            assert config.model.backbone.weights == "x.safetensors"
            continue
        with pytest.raises(
            UserError, match=r"weights=x.safetensors: tiny has the backbone resnet18, not resnet50"
        ):
            configuration.set_tiny(config)


@pytest.mark.parametrize("switch", ["tokens", "protect", "axial_attention", "probe"])
def test_guidance_switches_need_an_upsampler(switch):
    config = configuration.default()
    configuration.set_method(config, "fcn")
    config.model.guidance[switch] = True
    with pytest.raises(UserError, match=f"guidance.{switch}=True: needs an upsampler"):
        configuration.validate(config)


def test_a_config_survives_json():
    config = configuration.default()
    config.data.crop = (65, 97)
    config.data.scale_range = (0.5, 1.0)
    back = configuration.from_json(configuration.to_json(config))
    assert configuration.differences(config, back) == []
    assert back.data.crop == (65, 97)


def test_a_config_saved_by_an_earlier_version_is_read():
    """Fields that are gone are ignored; missing ones mean what runs did then, or have their default."""
    config = configuration.default()
    config.optim.learning_rate = 0.5
    saved = json.loads(configuration.to_json(config))
    saved["data"]["timeout"], saved["checkpoint"]["timeout"], saved["train"]["heartbeat"] = 5.0, 7.0, 600.0
    del saved["train"]["stall_timeout"], saved["model"]["attention_start"]
    back = configuration.from_json(json.dumps(saved))
    assert configuration.differences(config, back) == ["model.attention_start: 0.1 -> 1.0"]


def test_a_saved_config_with_an_unknown_field_is_refused():
    text = configuration.to_json(configuration.default()).replace('"steps"', '"stepz"')
    with pytest.raises(UserError, match=r"train\.stepz"):
        configuration.from_json(text)


def test_differences_name_the_fields():
    one, other = configuration.default(), configuration.default()
    other.optim.learning_rate = 1.0
    assert configuration.differences(one, other) == ["optim.learning_rate: 4e-05 -> 1.0"]


def test_arguments_are_parsed_and_bad_ones_refused():
    args = configuration.parse_arguments("table9/x,tiny", row="", tiny=False)
    assert (args.row, args.tiny) == ("table9/x", True)
    args = configuration.parse_arguments("method=fcn,tiny=False", method="hfgd", tiny=True)
    assert (args.method, args.tiny) == ("fcn", False)
    for bad in ("methud=fcn", "tiny=perhaps", "tiny=3"):
        with pytest.raises(UserError, match="config argument"):
            configuration.parse_arguments(bad, method="hfgd", tiny=False)
