"""Defaults, types and checks of a run's configuration: the one list of every field.

A config file (`configs/X.py`) starts from `default()`, applies `set_method`, changes what it needs and
returns the `ConfigDict`; command-line overrides (`--config.train.steps=200`) come after; `validate` is
called on the result, once, by every command.
"""

import ast
import json
import math
from typing import Any

from ml_collections import ConfigDict

from hfgd_jax.errors import UserError

# Names that the registries in models/ must offer, in the paper's words (a test compares them).
RESNETS = ("resnet18", "resnet50", "resnet101", "resnet50d", "resnet101d")
CONVNEXTS = ("convnext_a", "convnext_t", "convnext_s", "convnext_b", "convnext_l")
SWINS = ("swin_t", "swin_s", "swin_b", "swin_l")
BACKBONES = (*RESNETS, *CONVNEXTS, *SWINS)
CONTEXTS = ("identity", "aspp", "ppm", "ocr", "sa", "sa_car", "cae")
UPSAMPLERS = ("none", "sfpn", "u_sfpn", "fapn", "upernet", "deeplabv3plus")
GEOMETRIES = ("align_corners", "half_pixel")
PHOTOMETRICS = ("none", "plain", "advanced")
DTYPES = ("bfloat16", "float32")
OPTIMIZERS = ("sgd", "adamw")

# What a `method=` argument of a config stands for. Everything is a plain field afterwards.
METHODS: dict[str, dict[str, Any]] = {
    "fcn": {"context": "identity", "upsampler": "none", "output_stride": 32},
    "sa_car": {"context": "sa_car", "upsampler": "none", "output_stride": 32},
    "sa_car_d8": {
        "context": "sa_car",
        "upsampler": "none",
        "output_stride": 8,
        "backbone.output_stride": 8,
    },
    "cae": {"context": "cae", "upsampler": "none", "output_stride": 32},
    "sfpn": {"context": "identity", "upsampler": "sfpn", "output_stride": 4},
    "fapn": {"context": "identity", "upsampler": "fapn", "output_stride": 4},
    "upernet": {"context": "ppm", "upsampler": "upernet", "output_stride": 4},
    "deeplabv3plus": {
        "context": "aspp",
        "upsampler": "deeplabv3plus",
        "output_stride": 4,
        "backbone.output_stride": 8,
    },
    "hfgd": {
        "context": "cae",
        "upsampler": "u_sfpn",
        "output_stride": 4,
        "guidance.tokens": True,
        "guidance.protect": True,
        "guidance.axial_attention": True,
    },
}
METHODS["hfgd_os2"] = METHODS["hfgd"] | {"output_stride": 2}


def default() -> ConfigDict:
    """HFGD (ResNet-50, CAE, U-SFPN at OS=4) in the paper's advanced settings, on the embedded data set."""
    config = ConfigDict()
    config.model = ConfigDict(
        {
            "backbone": {
                "name": "resnet50",
                "weights": "",  # .safetensors (or .pth) file; "" trains from random weights
                "output_stride": 32,  # 16 or 8: dilation replaces the last strides
                "multi_grid": False,  # ResNet: dilation (1, 2, 4) within the last stage when dilated
                "drop_path": -1.0,  # stochastic depth's rate at the last block; -1: the source's
                "scan_blocks": False,  # ConvNeXt, Swin: a stage's blocks compile once (docs/scaling.md)
            },
            "context": "cae",
            "upsampler": "u_sfpn",
            "output_stride": 4,  # of the prediction, before it is resized to the pixels
            "channels": 256,  # of the high and low features, hence of the class tokens
            "context_channels": 512,  # attention value, CAR linear layer, FCN conv
            "query_channels": 64,
            "wide_channels": 2048,  # the CAE's wide linear layer
            "scale_context_attention": False,  # reading: SA and CAE logits are not divided by sqrt(d)
            "attention_heads": 4,  # reading: heads of the axial attention
            "guidance": {
                "tokens": False,  # share the class tokens with the guide branch, which trains them
                "stop_gradient": True,  # the shared tokens are frozen for the upsampler
                "protect": False,  # stop the upsampler's gradient at the backbone and context encoder
                "axial_attention": False,
                "probe": False,  # auxiliary FCN on the high-level feature (paper, Sec. 5.1)
                "probe_stop_gradient": False,
            },
            "geometry": "align_corners",  # reading; half_pixel for ConvNeXt and Swin
            "batch_norm_decay": 0.9997,  # 0.9-0.99 for runs of a few thousand steps
            "batch_norm_epsilon": 1e-3,  # of the decoder
        }
    )
    config.loss = ConfigDict(
        {
            # Weights; 1 each is a reading.
            "teacher": 1.0,
            "student": 1.0,
            "car": 1.0,
            "probe": 1.0,
            "regions": 0.4,  # OCR's soft object regions
            "dice": 0.0,  # of a Dice loss beside every cross-entropy
            "focal_gamma": 0.0,  # the focal loss in place of the cross-entropies; 0: plain
        }
    )
    config.data = ConfigDict(
        {
            "dataset": "shapes",
            "data_dir": "data",
            "num_classes": 9,
            "train_split": "train",
            "eval_split": "val",
            "crop": (129, 129),  # height, width
            "input_scale": 1.0,  # images and labels resized by this before training; evaluation resizes
            # images by it and predicts at the label's own size
            "scale_range": (0.5, 2.0),
            "scale_step": 0.25,
            "flip": 0.5,  # probability of a horizontal mirror image
            "photometric": "advanced",
            "threads": 4,  # decoding threads, per process
            "workers": 0,  # worker processes beside them
            "prefetch": 4,  # batches
            "skip_corrupt": False,  # True: an unreadable record is ignored and counted
        }
    )
    config.optim = ConfigDict(
        {
            "name": "adamw",
            "learning_rate": 4e-5,
            "weight_decay": 0.05,
            "momentum": 0.9,  # sgd only
            "power": 0.9,
            "warmup_steps": 0,
            "clip_norm": 0.0,  # 0: no clipping
        }
    )
    config.train = ConfigDict(
        {
            "steps": 30_000,
            "batch_size": 16,  # global: over all devices and hosts
            "accumulate": 1,  # micro-batches that one step is cut into
            "seed": 0,
            "dtype": "bfloat16",  # of the computation; parameters, statistics and losses are float32
            "log_every": 20,
        }
    )
    config.eval = ConfigDict(
        {
            "every": 2000,  # steps; 0: only at the end
            "batch_size": 8,
            "overlays": 4,  # validation images drawn at each evaluation
        }
    )
    config.checkpoint = ConfigDict({"every": 1000, "keep": 3})
    config.mesh = ConfigDict({"data": -1})  # devices along the batch; -1: all
    return config


def set_method(config: ConfigDict, method: str) -> None:
    """Sets the model fields that `method` stands for (a key of `METHODS`)."""
    _one_of("method", method, METHODS)
    model = default().model
    config.model.backbone.output_stride = model.backbone.output_stride
    config.model.guidance = model.guidance
    config.model.update_from_flattened_dict(METHODS[method])


def set_backbone(config: ConfigDict, name: str) -> None:
    """Sets the backbone and the geometry that its features lie in."""
    _one_of("backbone", name, BACKBONES)
    config.model.backbone.name = name
    config.model.geometry = _geometry_of(name)


def set_plain(config: ConfigDict) -> None:
    """The paper's plain settings (ablations): SGD 0.01, L2 1e-4, brightness only (spec table 2)."""
    config.optim.update({"name": "sgd", "learning_rate": 0.01, "weight_decay": 1e-4})
    config.data.photometric = "plain"


def set_tiny(config: ConfigDict) -> None:
    """The same structure at a size that trains a step in seconds on a CPU, on the embedded data set."""
    config.model.update({"channels": 16, "context_channels": 32, "wide_channels": 64, "query_channels": 16})
    family = config.model.backbone.name
    small = {CONVNEXTS: "convnext_a", SWINS: "swin_t", RESNETS: "resnet18"}
    set_backbone(config, next(name for names, name in small.items() if family in names))
    config.model.backbone.weights = ""
    config.model.batch_norm_decay = 0.9
    config.data.update({"dataset": "shapes", "num_classes": default().data.num_classes, "crop": (65, 65)})
    config.data.input_scale = 1.0
    config.train.update({"steps": 4, "batch_size": 2, "log_every": 1, "dtype": "float32"})
    config.optim.warmup_steps = 0
    config.eval.update({"every": 0, "batch_size": 4})
    config.checkpoint.every = 2


def parse_arguments(text: str | None, **defaults: Any) -> ConfigDict:
    """Reads the text after the colon of `--config FILE:TEXT`.

    Args:
        text: `key=value` pairs and bare flags joined by commas; a bare word sets that flag to True, or,
            where `defaults` has a key `row`, is the row.
        **defaults: every argument that the config understands, with its default.

    Raises:
        UserError: an argument that is not in `defaults`, or a value of another type.
    """
    out = ConfigDict(defaults)
    for item in filter(None, (text or "").split(",")):
        key, has_value, value = item.partition("=")
        if not has_value and key not in defaults and "row" in defaults:
            key, value = "row", key
        elif not has_value:
            value = "True"
        if key not in defaults:
            raise UserError(f"config argument {item!r}: unknown; one of {', '.join(defaults)}")
        if not isinstance(defaults[key], str):
            try:
                value = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                raise UserError(
                    f"config argument {item!r}: want a {type(defaults[key]).__name__}, "
                    f"such as {defaults[key]!r}"
                ) from None
        try:
            out[key] = value
        except TypeError:
            raise UserError(
                f"config argument {item!r}: want a {type(defaults[key]).__name__}, such as {defaults[key]!r}"
            ) from None
    return out


def to_json(config: ConfigDict) -> str:
    """The config as indented JSON; `from_json` reads it back."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True, default=list) + "\n"


def from_json(text: str) -> ConfigDict:
    """Reads a run's saved config; sequences come back as tuples and every field is checked against `default`.

    Raises:
        UserError: a field that this version does not know, or a value of another type.
    """
    config = default()
    try:
        flat = _flatten(json.loads(text))
        for key in flat:
            if not _has(config, key):
                raise UserError(f"saved config: field {key!r} is unknown to this version of hfgd_jax")
        config.update_from_flattened_dict(flat)
    except (json.JSONDecodeError, TypeError) as error:
        raise UserError(f"saved config: {error}") from None
    return config


def differences(one: ConfigDict, other: ConfigDict) -> list[str]:
    """Dotted fields whose values differ, each as `field: value of one -> value of other`."""
    a, b = _flatten(json.loads(to_json(one))), _flatten(json.loads(to_json(other)))
    return [f"{k}: {a.get(k)!r} -> {b.get(k)!r}" for k in sorted(a | b) if a.get(k) != b.get(k)]


def validate(config: ConfigDict) -> None:
    """Checks every choice and range, and choices against each other.

    Raises:
        UserError: naming the field, its value and what is possible.
    """
    model, data, train = config.model, config.data, config.train
    _one_of("config.model.backbone.name", model.backbone.name, BACKBONES)
    _one_of("config.model.backbone.output_stride", model.backbone.output_stride, (8, 16, 32))
    _one_of("config.model.context", model.context, CONTEXTS)
    _one_of("config.model.upsampler", model.upsampler, UPSAMPLERS)
    _one_of("config.model.geometry", model.geometry, GEOMETRIES)
    _one_of("config.data.photometric", data.photometric, PHOTOMETRICS)
    _one_of("config.train.dtype", train.dtype, DTYPES)
    _one_of("config.optim.name", config.optim.name, OPTIMIZERS)
    _check_backbone(model)
    strides = {"none": (model.backbone.output_stride,), "u_sfpn": (4, 2)}.get(model.upsampler, (4,))
    _one_of(f"config.model.output_stride (with upsampler={model.upsampler!r})", model.output_stride, strides)
    _check_guidance(model)
    for key in ("channels", "context_channels", "query_channels", "wide_channels", "attention_heads"):
        _in_range(f"config.model.{key}", model[key], 1, 65_536)
    if model.channels % model.attention_heads:
        raise UserError(
            f"config.model.attention_heads={model.attention_heads}: must divide "
            f"config.model.channels={model.channels}"
        )
    _in_range("config.model.batch_norm_decay", model.batch_norm_decay, 0.0, 1.0)
    _in_range("config.model.batch_norm_epsilon", model.batch_norm_epsilon, 0.0, 1.0)
    _check_data(data)
    _check_run(config)


def _geometry_of(backbone: str) -> str:
    """A patch embedding's features are cells; a ResNet's sit on pixels 0, s, 2s, ... (spec 1.0)."""
    return "align_corners" if backbone in RESNETS else "half_pixel"


def _check_backbone(model: ConfigDict) -> None:
    backbone = model.backbone
    if backbone.drop_path != -1.0:
        _in_range("config.model.backbone.drop_path", backbone.drop_path, 0.0, 0.99)
    if backbone.name in RESNETS:
        if backbone.drop_path > 0 or backbone.scan_blocks:
            field = "drop_path" if backbone.drop_path > 0 else "scan_blocks"
            raise UserError(
                f"config.model.backbone.{field}={backbone[field]}: ResNets have no such thing; "
                "set it back, or use a ConvNeXt or Swin"
            )
        return
    if model.geometry != _geometry_of(backbone.name):
        raise UserError(
            f"config.model.geometry={model.geometry!r}: the features of {backbone.name} are cells; "
            f"set config.model.geometry='{_geometry_of(backbone.name)}'"
        )
    if backbone.multi_grid:
        raise UserError("config.model.backbone.multi_grid=True: ResNets alone have it; set it to False")
    if backbone.name in SWINS:
        _one_of("config.model.backbone.output_stride (Swin has no dilation)", backbone.output_stride, (32,))


def _check_guidance(model: ConfigDict) -> None:
    guidance = model.guidance
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
    _in_range("config.optim.warmup_steps", optim.warmup_steps, 0, train.steps)
    _in_range("config.optim.clip_norm", optim.clip_norm, 0.0, math.inf)
    _in_range("config.eval.every", config.eval.every, 0, 10**9)
    _in_range("config.eval.batch_size", config.eval.batch_size, 1, 10**6)
    _in_range("config.eval.overlays", config.eval.overlays, 0, 1000)
    _in_range("config.checkpoint.every", config.checkpoint.every, 1, 10**9)
    _in_range("config.checkpoint.keep", config.checkpoint.keep, 1, 10**6)
    for key, weight in config.loss.items():
        _in_range(f"config.loss.{key}", weight, 0.0, 1e6)
    if config.mesh.data == 0 or config.mesh.data < -1:
        raise UserError(f"config.mesh.data={config.mesh.data}: want a number of devices, or -1 for all")


def _one_of(name: str, value: Any, choices: Any) -> None:
    if value not in choices:
        raise UserError(f"{name}={value!r}: unknown; one of {', '.join(map(str, choices))}")


def _in_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(f"{name}={value!r}: want a value from {low} to {high}")


def _pair(name: str, value: Any) -> tuple:
    if len(value) != 2:
        raise UserError(f"{name}={value!r}: want two numbers, such as (513, 513)")
    return tuple(value)


def _flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = tuple(value) if isinstance(value, list) else value
    return flat


def _has(config: ConfigDict, dotted: str) -> bool:
    for part in dotted.split("."):
        if not isinstance(config, ConfigDict) or part not in config:
            return False
        config = config[part]
    return True
