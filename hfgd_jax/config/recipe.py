"""The parts that the data sets' configs share: their arguments, their first lines and their last one.

    args = recipe.arguments(text, backbone="resnet50")
    config = recipe.start(args)
    ...  # what is the data set's own
    return recipe.finish(config, args)

Not here: the fields themselves (`fields.py`), and configs without these arguments (`demo.py`, `paper.py`).
"""

from typing import Any

from ml_collections import ConfigDict

from hfgd_jax.config import fields


def arguments(text: str | None, *, backbone: str, **own: Any) -> ConfigDict:
    """Reads a config's arguments: its own, and `backbone`, `method` (hfgd), `weights` and `tiny`.

    Args:
        text: what stands after the colon of `--config FILE:TEXT`.
        backbone: its default, of `config.BACKBONES`.
        **own: the config's own arguments with their defaults.

    Raises:
        UserError: an argument that is not known, or a value of another type.
    """
    return fields.parse_arguments(text, **own, backbone=backbone, method="hfgd", weights="", tiny=False)


def start(args: ConfigDict) -> ConfigDict:
    """The default config with the arguments' method, backbone and weights.

    Args:
        args: of `arguments`.

    Raises:
        UserError: an unknown method or backbone.
    """
    config = fields.default()
    fields.set_method(config, args.method)
    fields.set_backbone(config, args.backbone)
    config.model.backbone.weights = args.weights
    return config


def finish(config: ConfigDict, args: ConfigDict) -> ConfigDict:
    """The config itself, made tiny (`fields.set_tiny`) where the arguments say so."""
    if args.tiny:
        fields.set_tiny(config)
    return config
