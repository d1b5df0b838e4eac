"""Defaults and types of a run's configuration: the one list of every field. Checks: `checks.py`.

A config file (`configs/X.py`) starts from `default()`, applies `set_method`, changes what it needs and
returns the `ConfigDict`; command-line overrides (`--config.train.steps=200`) come after; `validate` is
called on the result, once, by every command.
"""

import json
from typing import Any

from ml_collections import ConfigDict

from hfgd_jax.config.checks import geometry_of, one_of
from hfgd_jax.config.names import BACKBONES, CONVNEXTS, EFFICIENTNETS, RESNETS, SWINS
from hfgd_jax.errors import UserError, nearest

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
    "u_sfpn_cae": {"context": "cae", "upsampler": "u_sfpn", "output_stride": 4},
}
_GUIDANCE = {"guidance.tokens": True, "guidance.protect": True}
_AXIAL_ATTENTION = {"guidance.axial_attention": True}
METHODS |= {  # HFGM's parts (the paper's Table 3), and the whole
    "sfpn_guidance": METHODS["sfpn"] | _GUIDANCE,
    "sfpn_aa": METHODS["sfpn"] | _AXIAL_ATTENTION,
    "sfpn_hfgm": METHODS["sfpn"] | _GUIDANCE | _AXIAL_ATTENTION,
    "hfgd": METHODS["u_sfpn_cae"] | _GUIDANCE | _AXIAL_ATTENTION,
}
METHODS["hfgd_os2"] = METHODS["hfgd"] | {"output_stride": 2}
METHODS["hfgd_residual"] = METHODS["hfgd"] | {"guidance.residual": True}  # ours (docs/readings.md)


# What a run did whose saved config lacks a field, where that is not today's default.
BEFORE = {"model.guidance.signed": "none", "model.attention_start": 1.0}
# Fields of earlier versions that are gone; they never changed the weights, and `train.stall_timeout` is left.
GONE = ("data.timeout", "checkpoint.timeout", "train.heartbeat")


def default() -> ConfigDict:
    """HFGD (ResNet-50, CAE, U-SFPN at OS=4) in the paper's advanced settings, on the embedded data set."""
    config = ConfigDict()
    config.model = _model()
    config.loss = _loss()
    config.data = _data()
    config.optim = _optim()
    config.train = _train()
    config.eval = _eval()
    config.checkpoint = _checkpoint()
    config.mesh = _mesh()
    return config


# Each field below is one line, `"name": value,  # its meaning`.


def _model() -> ConfigDict:
    return ConfigDict(
        {
            "backbone": _backbone(),
            "context": "cae",  # the context encoder, one of config.CONTEXTS
            "upsampler": "u_sfpn",  # one of config.UPSAMPLERS
            "output_stride": 4,  # of the prediction, before it is resized to the pixels
            "channels": 256,  # of the high and low features, hence of the class tokens
            "context_channels": 512,  # attention value, CAR linear layer, FCN conv
            "query_channels": 64,  # of the queries and keys of SA and CAE
            "wide_channels": 2048,  # the CAE's wide linear layer
            "scale_context_attention": False,  # reading: SA and CAE logits are not divided by sqrt(d)
            "context_attention_bias": False,  # SA and CAE: query, key and value with biases (public code)
            "attention_start": 0.1,  # axial attention's value kernels start Glorot-uniform times this
            "attention_equal_start": False,  # of all: query and key start with the same kernel (public code)
            "attention_heads": 4,  # reading: heads of the axial attention
            "guidance": _guidance(),
            "geometry": "align_corners",  # reading; half_pixel for ConvNeXt and Swin
            "batch_norm_decay": 0.9997,  # 0.9-0.99 for runs of a few thousand steps
            "batch_norm_epsilon": 1e-3,  # of the decoder
        }
    )


def _backbone() -> ConfigDict:
    return ConfigDict(
        {
            "name": "resnet50",  # one of config.BACKBONES; set_backbone sets what goes with it
            "weights": "",  # a path, or a name (docs/weights.md); "" trains from random weights
            "output_stride": 32,  # 16 or 8: dilation replaces the last strides
            "expanded_levels": False,  # EfficientNet: levels six times as wide (set_backbone turns it on)
            "multi_grid": False,  # ResNet: dilation (1, 2, 4) within the last stage when dilated
            "batch_norm_epsilon": -1.0,  # -1: the backbone's own; weights of timm's efficientnet_*: 1e-5
            "normalization": "",  # of pixels: imagenet, half (127.5, 127.5), lite (127, 128); "": its own
            "drop_path": -1.0,  # stochastic depth's rate at the last block; -1: the source's
            "scan_blocks": False,  # ConvNeXt, Swin: a stage's blocks compile once (docs/scaling.md)
            "remat": False,  # compute each block again in the backward pass: less memory, more time
        }
    )


def _guidance() -> ConfigDict:
    return ConfigDict(
        {
            "tokens": False,  # share the class tokens with the guide branch, which trains them
            "stop_gradient": True,  # the shared tokens are frozen for the upsampler
            "protect": False,  # stop the upsampler's gradient at the backbone and context encoder
            "signed": "student",  # the last layer before the tokens has no ReLU; or none, both
            "axial_attention": False,  # on the low feature, at the upsampler's stride
            "residual": False,  # the student's feature is added to the teacher's (not of the paper)
            "probe": False,  # auxiliary FCN on the high-level feature (paper, Sec. 5.1)
            "probe_stop_gradient": False,  # the auxiliary FCN's loss does not train the backbone
        }
    )


def _loss() -> ConfigDict:
    return ConfigDict(
        {
            "teacher": 1.0,  # reading: weight of the guide branch's cross-entropy
            "student": 1.0,  # reading: weight of the prediction's cross-entropy
            "car": 1.0,  # reading: weight of CAR's losses
            "probe": 1.0,  # weight of the auxiliary FCN's cross-entropy
            "regions": 0.4,  # weight of the cross-entropy of OCR's soft object regions
            "dice": 0.0,  # weight of a Dice loss beside the teacher's and the student's cross-entropy
            "focal_gamma": 0.0,  # the focal loss in place of the cross-entropies; 0: plain
            "class_weights": (),  # of the cross-entropies, one a class; (): all alike
            "balance": "none",  # median_frequency: class weights from the training split's labels
            "hard_pixels": 1.0,  # share of the pixels, the hardest, that teacher and student learn from
            "divisor": "valid",  # of the cross-entropies: the labelled pixels; or all, the ignored ones too
        }
    )


def _data() -> ConfigDict:
    # Evaluation resizes images by input_scale and predicts at the label's own size.
    return ConfigDict(
        {
            "dataset": "shapes",  # a name of docs/datasets.md
            "data_dir": "data",  # where prepared data sets lie
            "num_classes": 9,  # of the data set
            "train_split": "train",  # what is trained on
            "eval_split": "val",  # what is evaluated on
            "crop": (129, 129),  # height, width
            "input_scale": 1.0,  # images and labels are resized by this before training
            "scale_range": (0.5, 2.0),  # least and largest scale of the augmentation
            "scale_step": 0.25,  # from one scale of the augmentation to the next; 0: any scale
            "flip": 0.5,  # probability of a horizontal mirror image
            "photometric": "advanced",  # or none, plain (brightness alone), public (the public code's)
            "threads": 4,  # decoding threads, per process
            "workers": 0,  # worker processes beside them
            "prefetch": 4,  # batches
            "skip_corrupt": False,  # True: an unreadable record is ignored and counted
        }
    )


def _optim() -> ConfigDict:
    return ConfigDict(
        {
            "name": "adamw",  # or sgd
            "learning_rate": 4e-5,  # the highest; it decays to 0 over train.steps
            "weight_decay": 0.05,  # of kernels: decoupled (adamw), or L2 (sgd)
            "momentum": 0.9,  # sgd only
            "power": 0.9,  # of the learning rate's polynomial decay
            "warmup_steps": 0,  # in which the learning rate rises from 0; part of train.steps
            "clip_norm": 0.0,  # 0: no clipping
            "backbone_rate": 1.0,  # the backbone's learning rate is this times the others'; 0 freezes it
        }
    )


def _train() -> ConfigDict:
    # An average (ema_decay) is what is evaluated, drawn, kept as best, predicted with and exported: one more
    # float32 copy of parameters and statistics, in memory and in each checkpoint, beside the trained one.
    return ConfigDict(
        {
            "steps": 30_000,  # optimizer steps
            "batch_size": 16,  # global: over all devices and hosts
            "accumulate": 1,  # micro-batches that one step is cut into
            "ema_decay": 0.0,  # of the weights' moving average, which is what is evaluated; 0: none
            "seed": 0,  # of the random weights, the order of the data and its augmentation
            "dtype": "bfloat16",  # of the computation; parameters, statistics and losses are float32
            "log_every": 20,  # steps
            "stall_timeout": 1800.0,  # seconds a step, a batch or a save may take before the run ends; 0: any
        }
    )


def _eval() -> ConfigDict:
    return ConfigDict(
        {
            "every": 2000,  # steps; 0: only at the end
            "batch_size": 8,  # global; raised to a multiple of the devices
            "overlays": 4,  # validation images drawn at each evaluation
            "scales": (1.0,),  # of the images, on top of data.input_scale; logits are averaged
            "flip": False,  # average over mirror images too
            "window": (0, 0),  # height, width of sliding windows over the scaled image; (0, 0): the whole
            "window_overlap": 1 / 3,  # reading: share of a window that the next one covers too, at least
            "branch": "prediction",  # what is scored; or guide, or probe (paper, Sec. 5.1)
            "details": False,  # boundary IoU and recall of small objects as well: costs time on the host
        }
    )


def _checkpoint() -> ConfigDict:
    return ConfigDict(
        {
            "every": 1000,  # steps
            "keep": 3,  # the latest ones
        }
    )


def _mesh() -> ConfigDict:
    return ConfigDict(
        {
            "data": -1,  # devices along the batch that hold whole copies of the state; -1: the rest
            "fsdp": 1,  # devices that share one copy of the state, and the batch too; -1: the rest
            "constrain_decoder": False,  # keep the decoder's activations split along the batch alone
        }
    )


def set_method(config: ConfigDict, method: str) -> None:
    """Sets the model fields that `method` stands for (a key of `METHODS`)."""
    one_of("method", method, METHODS)
    model = default().model
    config.model.backbone.output_stride = model.backbone.output_stride
    config.model.guidance = model.guidance
    config.model.update_from_flattened_dict(METHODS[method])


def set_backbone(config: ConfigDict, name: str) -> None:
    """Sets the backbone, its kind of levels and the geometry that its features lie in."""
    one_of("backbone", name, BACKBONES)
    config.model.backbone.name = name
    config.model.backbone.expanded_levels = name in EFFICIENTNETS
    config.model.geometry = geometry_of(name)


def set_plain(config: ConfigDict) -> None:
    """The paper's plain settings (ablations, Sec. 4): SGD 0.01, L2, brightness only.

    The L2 is `l2(1e-4)` of the public code, whose gradient is 2e-4 w.
    """
    config.optim.update({"name": "sgd", "learning_rate": 0.01, "weight_decay": 2e-4})
    config.data.photometric = "plain"


def set_tiny(config: ConfigDict) -> None:
    """The same structure and data at a size that trains a step in seconds on a CPU.

    Raises:
        UserError: the weights are of a backbone that is larger than the smallest of its family.
    """
    config.model.update({"channels": 16, "context_channels": 32, "wide_channels": 64, "query_channels": 16})
    family = config.model.backbone.name
    small = {
        CONVNEXTS: "convnext_a",
        SWINS: "swin_t",
        RESNETS: "resnet18",
        EFFICIENTNETS: "efficientnet_lite0",
    }
    name = next(name for names, name in small.items() if family in names)
    if config.model.backbone.weights and name != family:
        raise UserError(
            f"config.model.backbone.weights={config.model.backbone.weights}: tiny has the backbone {name}, "
            f"not {family}; leave them out, or give backbone={name} with weights of it"
        )
    set_backbone(config, name)
    config.model.batch_norm_decay = 0.9
    config.data.crop = (65, 65)
    config.train.update({"steps": 4, "batch_size": 2, "log_every": 1, "dtype": "float32"})
    config.optim.warmup_steps = 0
    config.eval.update({"every": 0, "batch_size": 4, "overlays": 0})
    config.checkpoint.every = 2


def set_without_data(config: ConfigDict) -> None:
    """The config's structure, tiny, on the embedded data set: runs where the config's own data is not."""
    set_tiny(config)
    data = default().data
    config.data.update({key: data[key] for key in ("dataset", "num_classes", "train_split", "eval_split")})
    config.data.input_scale = 1.0
    config.loss.class_weights = ()  # they were another data set's


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
        flat = BEFORE | _flatten(json.loads(text))
        flat = {key: value for key, value in flat.items() if key not in GONE}
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


def check_field(name: str) -> None:
    """Raises UserError, with the nearest right one, where no field has this dotted name."""
    names = list(flat(default()))
    if name in names:
        return
    inside = [other.removeprefix(f"{name}.") for other in names if other.startswith(f"{name}.")]
    if inside:
        raise UserError(f"--config.{name}: is a group of fields; name one of {', '.join(inside)}")
    near = next((other for other in names if _initials(other) == name), "")  # optim.lr
    near = near or nearest(name, names)
    hint = f"did you mean config.{near}? " if near else ""
    raise UserError(f"--config.{name}: no such field; {hint}--help lists all")


def flat(config: ConfigDict) -> dict[str, Any]:
    """Dotted name of each field -> its value."""
    return _flatten(config.to_dict())


def _initials(name: str) -> str:
    """`optim.learning_rate` as `optim.lr`."""
    group, dot, field = name.rpartition(".")
    return group + dot + "".join(word[:1] for word in field.split("_"))


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
