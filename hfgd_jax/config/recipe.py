"""The parts that the data sets' configs share: their arguments, their first lines and their last one.

    args = recipe.arguments(text, backbone="resnet50")
    config = recipe.start(args)
    ...  # what is the data set's own
    return recipe.finish(config, args)

Not here: the fields themselves (`fields.py`). `demo.py` and `paper.py` have other arguments.
"""

import ast
from typing import Any

from ml_collections import ConfigDict

from hfgd_jax.config import fields
from hfgd_jax.errors import UserError


def arguments(text: str | None, *, backbone: str, **own: Any) -> ConfigDict:
    """Reads a config's arguments: its own, `backbone`, `method` (hfgd), `weights`, `tiny`, `without_data`.

    Args:
        text: what stands after the colon of `--config FILE:TEXT`.
        backbone: its default, of `config.BACKBONES`.
        **own: the config's own arguments with their defaults.

    Raises:
        UserError: an argument that is not known, or a value of another type.
    """
    more = {"method": "hfgd", "weights": "", "tiny": False, "without_data": False}
    return parse_arguments(text, **own, backbone=backbone, **more)


def parse_arguments(text: str | None, **defaults: Any) -> ConfigDict:
    """Reads the text after the colon of `--config FILE:TEXT`.

    Args:
        text: `key=value` pairs and bare flags joined by commas; a bare word sets that flag to True, or,
            where `defaults` has a key `row`, is the row.
        **defaults: every argument that the config understands, with its default.

    Raises:
        UserError: an argument that is not in `defaults`, a value of another type, or `without_data` beside
            what belongs to the data.
    """
    out, given = ConfigDict(defaults), set()
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
        given.add(key)
    if out.get("without_data") and (of_data := sorted(given & {"classes", "images", "size", "weights"})):
        raise UserError(
            f"config argument 'without_data': trains on the embedded data set; leave out {', '.join(of_data)}"
        )
    return out


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
    """The config itself, changed by `tiny` or `without_data` where the arguments say so.

    Raises:
        UserError: as `fields.set_tiny`.
    """
    if args.tiny:
        fields.set_tiny(config)
    if args.without_data:
        fields.set_without_data(config)
    return config
