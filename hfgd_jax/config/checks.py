"""What a configuration may hold: the names there are, the ranges, and which choices go together."""

import math
from typing import Any

from ml_collections import ConfigDict

from hfgd_jax.config.names import BACKBONES, CONTEXTS, CONVNEXTS, EFFICIENTNETS, RESNETS, SWINS, UPSAMPLERS
from hfgd_jax.errors import UserError

NORMALIZATIONS = ("imagenet", "half", "lite")
GEOMETRIES = ("align_corners", "half_pixel")
PHOTOMETRICS = ("none", "plain", "advanced", "public")
DTYPES = ("bfloat16", "float32")
OPTIMIZERS = ("sgd", "adamw")
BALANCES = ("none", "median_frequency")
DIVISORS = ("valid", "all")
SIGNED = ("none", "student", "both")
BRANCHES = ("prediction", "guide", "probe")


def validate(config: ConfigDict) -> None:
    """Checks every choice and range, and choices against each other.

    Raises:
        UserError: naming the field, its value and what is possible.
    """
    model, data, train = config.model, config.data, config.train
    one_of("config.model.backbone.name", model.backbone.name, BACKBONES)
    one_of("config.model.backbone.output_stride", model.backbone.output_stride, (8, 16, 32))
    one_of("config.model.context", model.context, CONTEXTS)
    one_of("config.model.upsampler", model.upsampler, UPSAMPLERS)
    one_of("config.model.geometry", model.geometry, GEOMETRIES)
    one_of("config.data.photometric", data.photometric, PHOTOMETRICS)
    one_of("config.train.dtype", train.dtype, DTYPES)
    one_of("config.optim.name", config.optim.name, OPTIMIZERS)
    _check_backbone(model)
    strides = {"none": (model.backbone.output_stride,), "u_sfpn": (4, 2)}.get(model.upsampler, (4,))
    one_of(f"config.model.output_stride (with upsampler={model.upsampler!r})", model.output_stride, strides)
    _check_guidance(model)
    for key in ("channels", "context_channels", "query_channels", "wide_channels", "attention_heads"):
        _in_range(f"config.model.{key}", model[key], 1, 65_536)
    if model.channels % model.attention_heads:
        raise UserError(
            f"config.model.attention_heads={model.attention_heads}: must divide "
            f"config.model.channels={model.channels}"
        )
    if model.upsampler == "fapn" and model.channels % 8:
        raise UserError(
            f"config.model.channels={model.channels}: upsampler='fapn' has 8 deformable groups; "
            "want a multiple of 8"
        )
    _in_range("config.model.attention_start", model.attention_start, 0.0, 1.0)
    _in_range("config.model.batch_norm_decay", model.batch_norm_decay, 0.0, 1.0)
    _in_range("config.model.batch_norm_epsilon", model.batch_norm_epsilon, 0.0, 1.0)
    _check_data(data)
    _check_loss(config.loss, data.num_classes)
    _check_run(config)


def geometry_of(backbone: str) -> str:
    """A patch embedding's features are cells; those of strided convolutions sit on pixels 0, s, 2s, ...."""
    return "align_corners" if backbone in (*RESNETS, *EFFICIENTNETS) else "half_pixel"


def _check_backbone(model: ConfigDict) -> None:
    backbone = model.backbone
    if backbone.normalization:
        field = "config.model.backbone.normalization ('': the backbone's own)"
        one_of(field, backbone.normalization, NORMALIZATIONS)
    if backbone.batch_norm_epsilon != -1.0:
        _in_range("config.model.backbone.batch_norm_epsilon", backbone.batch_norm_epsilon, 1e-8, 1.0)
        if backbone.name in (*CONVNEXTS, *SWINS):
            raise UserError(
                f"config.model.backbone.batch_norm_epsilon={backbone.batch_norm_epsilon}: "
                f"{backbone.name} has no batch normalisation; set it to -1.0"
            )
    if backbone.drop_path != -1.0:
        _in_range("config.model.backbone.drop_path", backbone.drop_path, 0.0, 0.99)
    if backbone.scan_blocks and backbone.name in (*RESNETS, *EFFICIENTNETS):
        raise UserError(
            "config.model.backbone.scan_blocks=True: ConvNeXt and Swin alone have it; set it to False"
        )
    if backbone.drop_path > 0 and backbone.name in RESNETS:
        raise UserError(
            f"config.model.backbone.drop_path={backbone.drop_path}: ResNets have no such thing; "
            "set it to -1.0, or use another backbone"
        )
    if backbone.expanded_levels and backbone.name not in EFFICIENTNETS:
        raise UserError(
            "config.model.backbone.expanded_levels=True: EfficientNets alone have them; set it to False"
        )
    if backbone.multi_grid and backbone.name not in RESNETS:
        raise UserError("config.model.backbone.multi_grid=True: ResNets alone have it; set it to False")
    if backbone.name in (*CONVNEXTS, *SWINS) and model.geometry != geometry_of(backbone.name):
        raise UserError(
            f"config.model.geometry={model.geometry!r}: the features of {backbone.name} are cells; "
            f"set config.model.geometry='{geometry_of(backbone.name)}'"
        )
    if backbone.name in SWINS:
        one_of("config.model.backbone.output_stride (Swin has no dilation)", backbone.output_stride, (32,))


def _check_guidance(model: ConfigDict) -> None:
    guidance = model.guidance
    one_of("config.model.guidance.signed", guidance.signed, SIGNED)
    if model.upsampler == "none":
        for key in ("tokens", "protect", "axial_attention", "probe"):
            if guidance[key]:
                raise UserError(
                    f"config.model.guidance.{key}=True: needs an upsampler, but config.model.upsampler='none'"
                )
    if not guidance.stop_gradient and not guidance.tokens:
        raise UserError(
            "config.model.guidance.stop_gradient=False: needs guidance.tokens=True; "
            "an upsampler's own tokens are never frozen"
        )
    if guidance.residual and not guidance.tokens:
        raise UserError(
            "config.model.guidance.residual=True: needs guidance.tokens=True; without a guide branch there "
            "is no teacher to add to"
        )
    if guidance.tokens and guidance.probe:
        raise UserError(
            "config.model.guidance.probe=True: the guide branch (guidance.tokens=True) already is one; "
            "turn one of them off"
        )
    if guidance.probe_stop_gradient and not guidance.probe:
        raise UserError("config.model.guidance.probe_stop_gradient=True: needs guidance.probe=True")


def _check_data(data: ConfigDict) -> None:
    _in_range("config.data.num_classes", data.num_classes, 2, 255)
    for side, value in zip(("height", "width"), _pair("config.data.crop", data.crop), strict=True):
        _in_range(f"config.data.crop {side}", value, 33, 8193)
    low, high = _pair("config.data.scale_range", data.scale_range)
    if not 0 < low <= high <= 8:
        raise UserError(f"config.data.scale_range={tuple(data.scale_range)}: want 0 < low <= high <= 8")
    _in_range("config.data.scale_step", data.scale_step, 0.0, 8.0)
    _in_range("config.data.input_scale", data.input_scale, 0.01, 8.0)
    _in_range("config.data.flip", data.flip, 0.0, 1.0)
    _in_range("config.data.threads", data.threads, 1, 512)
    _in_range("config.data.workers", data.workers, 0, 512)
    _in_range("config.data.prefetch", data.prefetch, 1, 512)


def _check_loss(loss: ConfigDict, num_classes: int) -> None:
    for key in ("teacher", "student", "car", "probe", "regions", "dice", "focal_gamma"):
        _in_range(f"config.loss.{key}", loss[key], 0.0, 1e6)
    one_of("config.loss.balance", loss.balance, BALANCES)
    weights = loss.class_weights
    if weights and len(weights) != num_classes:
        raise UserError(
            f"config.loss.class_weights={tuple(weights)!r}: {len(weights)} of them, but "
            f"config.data.num_classes={num_classes}; want one a class, or () for none"
        )
    if not all(_is_number(weight) and 0 < weight <= 1e6 for weight in weights):
        raise UserError(f"config.loss.class_weights={tuple(weights)!r}: want numbers above 0, to 1e6")
    if weights and loss.balance != "none":
        raise UserError(
            f"config.loss.balance={loss.balance!r}: config.loss.class_weights are given already; "
            "set one of the two back ('none' or ())"
        )
    one_of("config.loss.divisor", loss.divisor, DIVISORS)
    if loss.divisor == "all" and (weights or loss.balance != "none"):
        raise UserError(
            "config.loss.divisor='all': with class weights the divisor is the sum of the pixels' weights; "
            "set it to 'valid', or drop config.loss.class_weights and config.loss.balance"
        )
    if not 0 < loss.hard_pixels <= 1:
        raise UserError(f"config.loss.hard_pixels={loss.hard_pixels!r}: want a share above 0, to 1 (all)")
    if loss.hard_pixels < 1 and loss.focal_gamma > 0:
        raise UserError(
            f"config.loss.hard_pixels={loss.hard_pixels!r}: the focal loss (config.loss.focal_gamma="
            f"{loss.focal_gamma!r}) turns to them already; set hard_pixels to 1 or focal_gamma to 0"
        )


def _check_run(config: ConfigDict) -> None:
    train, optim = config.train, config.optim
    _in_range("config.train.steps", train.steps, 1, 10**9)
    _in_range("config.train.batch_size", train.batch_size, 1, 10**6)
    _in_range("config.train.accumulate", train.accumulate, 1, train.batch_size)
    if train.batch_size % train.accumulate:
        raise UserError(
            f"config.train.accumulate={train.accumulate}: must divide "
            f"config.train.batch_size={train.batch_size}"
        )
    _in_range("config.train.seed", train.seed, 0, 2**31 - 1)
    _in_range("config.train.log_every", train.log_every, 1, 10**9)
    _in_range("config.optim.learning_rate", optim.learning_rate, 0.0, 1e3)
    _in_range("config.optim.weight_decay", optim.weight_decay, 0.0, 1e3)
    _in_range("config.optim.momentum", optim.momentum, 0.0, 1.0)
    _in_range("config.optim.power", optim.power, 0.0, 100.0)
    _in_range("config.optim.warmup_steps", optim.warmup_steps, 0, math.inf)
    _in_range("config.optim.clip_norm", optim.clip_norm, 0.0, math.inf)
    _in_range("config.optim.backbone_rate", optim.backbone_rate, 0.0, 100.0)
    if not 0.0 <= train.ema_decay < 1.0:
        raise UserError(f"config.train.ema_decay={train.ema_decay!r}: want a value from 0.0 to below 1.0")
    _check_eval(config.eval)
    one_of("config.eval.branch", config.eval.branch, BRANCHES)
    needs = {"guide": "tokens", "probe": "probe"}.get(config.eval.branch)
    if needs and not config.model.guidance[needs]:
        raise UserError(
            f"config.eval.branch={config.eval.branch!r}: needs config.model.guidance.{needs}=True"
        )
    _in_range("config.checkpoint.every", config.checkpoint.every, 1, 10**9)
    _in_range("config.checkpoint.keep", config.checkpoint.keep, 1, 10**6)
    _in_range("config.train.stall_timeout", train.stall_timeout, 0.0, 1e6)
    for axis in ("data", "fsdp"):
        size = config.mesh[axis]
        if size == 0 or size < -1:
            raise UserError(f"config.mesh.{axis}={size}: want a number of devices, or -1 for the rest")
    if config.mesh.data == config.mesh.fsdp == -1:
        raise UserError("config.mesh.fsdp=-1: config.mesh.data is -1, too; only one of them can be the rest")


def _check_eval(settings: ConfigDict) -> None:
    _in_range("config.eval.every", settings.every, 0, 10**9)
    _in_range("config.eval.batch_size", settings.batch_size, 1, 10**6)
    _in_range("config.eval.overlays", settings.overlays, 0, 1000)
    scales = settings.scales
    if not scales or not all(_is_number(scale) and 0.1 <= scale <= 8 for scale in scales):
        raise UserError(
            f"config.eval.scales={tuple(scales)!r}: want numbers from 0.1 to 8, such as (0.5, 1, 1.5)"
        )
    window = _pair("config.eval.window", settings.window)
    if window != (0, 0) and not all(isinstance(side, int) and 33 <= side <= 8193 for side in window):
        raise UserError(
            f"config.eval.window={window!r}: want a height and a width from 33 to 8193, or (0, 0) for the "
            "whole image"
        )
    _in_range("config.eval.window_overlap", settings.window_overlap, 0.0, 0.9)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def one_of(name: str, value: Any, choices: Any) -> None:
    """Raises a UserError that lists the choices unless `value` is one of them."""
    if value not in choices:
        raise UserError(f"{name}={value!r}: unknown; one of {', '.join(map(str, choices))}")


def _in_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(f"{name}={value!r}: want a value from {low} to {high}")


def _pair(name: str, value: Any) -> tuple:
    if len(value) != 2:
        raise UserError(f"{name}={value!r}: want two numbers, such as (513, 513)")
    return tuple(value)
