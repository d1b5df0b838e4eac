"""Run configs from the `config.json` of whole models of other projects, and back.

transformers' `UperNetForSemanticSegmentation`, with ConvNeXt, Swin or ResNet, is `context="ppm"` with
`upsampler="upernet"`, without guidance. The names of its tensors are in `weights/names/upernet.py`. This
module is the only one here that builds a run's config; it stays in `weights/` for now.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from hfgd_jax import config as configuration
from hfgd_jax.errors import UserError
from hfgd_jax.models.backbones import convnext, resnet, swin
from hfgd_jax.models.context.ppm import BINS

EPSILON = 1e-5  # of every batch normalisation there
STAGES = ["stage1", "stage2", "stage3", "stage4"]
CROP = (512, 512)
DEFAULT_LABELS = 2  # where a config names no classes


def config_of(transformers_config: Mapping[str, Any]) -> ConfigDict:
    """The run config of a saved UPerNet: its model, the number of its classes, crops of 512x512.

    It computes in float32, so that its logits equal the source's. The auxiliary head has no counterpart here.

    Args:
        transformers_config: the content of a `config.json`.

    Raises:
        UserError: it is of another model, or has a structure that is not supported here, which is named.
    """
    given = transformers_config
    if given.get("model_type") != "upernet":
        raise UserError(
            f"config.json: model_type={given.get('model_type')!r}: whole models are read of 'upernet' alone; "
            "of others import the backbone (--backbone)"
        )
    if tuple(given.get("pool_scales", BINS)) != BINS:
        raise UserError(f"config.json: pool_scales={given['pool_scales']}: want {list(BINS)}")
    name = _backbone_of(given.get("backbone_config"))
    config = configuration.default()
    configuration.set_method(config, "upernet")
    configuration.set_backbone(config, name)
    width = given.get("hidden_size", 512)
    config.model.update(
        {
            "channels": width,
            "context_channels": width,
            "geometry": "half_pixel",
            "batch_norm_epsilon": EPSILON,
        }
    )
    config.data.update({"num_classes": len(given.get("id2label") or range(DEFAULT_LABELS)), "crop": CROP})
    config.train.dtype = "float32"
    configuration.validate(config)
    return config


def transformers_config(config: ConfigDict, classes: tuple[str, ...]) -> dict[str, Any]:
    """The `config.json` of a UPerNet of ours.

    Args:
        config: of the run.
        classes: names of the classes.

    Raises:
        UserError: the run is not a UPerNet that transformers supports; the field that differs is named.
    """
    model = config.model
    wanted = {
        "context": ("ppm",),
        "upsampler": ("upernet",),
        "geometry": ("half_pixel",),
        "context_channels": (model.channels,),
        "backbone.output_stride": (32,),
        "backbone.batch_norm_epsilon": (EPSILON, -1.0),
        "backbone.normalization": ("imagenet", ""),
        "guidance.axial_attention": (False,),
    }
    for field, values in wanted.items():
        have = model
        for key in field.split("."):
            have = have[key]
        if have not in values:
            raise UserError(
                f"config.model.{field}={have!r}: transformers' UPerNet has {values[0]!r}; "
                "export the backbone alone (--output FILE.safetensors)"
            )
    if model.batch_norm_epsilon < EPSILON:
        raise UserError(
            f"config.model.batch_norm_epsilon={model.batch_norm_epsilon}: want at least {EPSILON}"
        )
    if model.backbone.name not in backbone_configs():
        raise UserError(f"config.model.backbone.name={model.backbone.name!r}: transformers has none such")
    return {
        "architectures": ["UperNetForSemanticSegmentation"],
        "model_type": "upernet",
        "hidden_size": model.channels,
        "pool_scales": list(BINS),
        "use_auxiliary_head": False,
        "id2label": {str(i): label for i, label in enumerate(classes)},
        "label2id": {label: i for i, label in enumerate(classes)},
        "backbone_config": backbone_configs()[model.backbone.name]
        | {"stage_names": ["stem", *STAGES], "out_features": STAGES, "out_indices": [1, 2, 3, 4]},
    }


def backbone_configs() -> dict[str, dict[str, Any]]:
    """The fields of a `backbone_config` that determine its structure, by our name of the backbone."""
    configs = {}
    for name, (depths, widths, _) in convnext.VARIANTS.items():
        configs[name] = {
            "model_type": "convnext",
            "depths": list(depths),
            "hidden_sizes": list(widths),
            "patch_size": 4,
            "num_channels": 3,
            "hidden_act": "gelu",
        }
    for name, (depths, width, heads, window) in swin.VARIANTS.items():
        configs[name] = {
            "model_type": "swin",
            "depths": list(depths),
            "embed_dim": width,
            "num_heads": list(heads),
            "window_size": window,
            "patch_size": 4,
            "num_channels": 3,
            "mlp_ratio": 4.0,
            "qkv_bias": True,
            "use_absolute_embeddings": False,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
        }
    for name in ("resnet50", "resnet101", "resnet18"):
        configs[name] = {
            "model_type": "resnet",
            "depths": list(resnet.DEPTHS[name]),
            "hidden_sizes": list(resnet.channels(name).values()),
            "layer_type": "bottleneck" if resnet.is_bottleneck(name) else "basic",
            "embedding_size": 64,
            "num_channels": 3,
            "hidden_act": "relu",
            "downsample_in_first_stage": False,
            "downsample_in_bottleneck": False,
        }
    return configs


# The backbone whose fields are transformers' defaults, which a config may leave out.
_DEFAULTS = {"convnext": "convnext_t", "swin": "swin_t", "resnet": "resnet50"}


def _backbone_of(given: Any) -> str:
    """Our name of a `backbone_config`'s network."""
    kind = given.get("model_type") if isinstance(given, dict) else None
    if kind not in _DEFAULTS:
        raise UserError(
            f"config.json: backbone_config of model_type={kind!r}: want one of {', '.join(_DEFAULTS)}"
        )
    stages = given.get("out_features") or [f"stage{i}" for i in given.get("out_indices") or ()]
    if stages != STAGES:
        raise UserError(f"config.json: backbone_config.out_features={stages}: want {STAGES}")
    known = backbone_configs()
    have = {field: given.get(field, value) for field, value in known[_DEFAULTS[kind]].items()}

    def differing(name: str) -> list[str]:
        return [f"{key}={have[key]!r} (want {v!r})" for key, v in known[name].items() if have[key] != v]

    family = [name for name, fields in known.items() if fields["model_type"] == kind]
    nearest = min(family, key=lambda name: len(differing(name)))
    if differing(nearest):
        raise UserError(
            f"config.json: backbone_config is of no {kind} here; nearest is {nearest}, but for "
            f"{', '.join(differing(nearest))}"
        )
    return nearest
