"""The configs, one file a data set, each with `get_config(arguments)`; in Python: `hfgd_jax.configs.load`.

Not here: what a config's fields are and may hold (`hfgd_jax/config/`).
"""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hfgd_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from ml_collections import ConfigDict

FOLDER = Path(__file__).resolve().parent


def names() -> list[str]:
    """The configs there are."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


def path(name: str) -> Path:
    """The file of a config.

    Raises:
        UserError: no config has this name.
    """
    if name not in names():
        near = nearest(name, names())
        hint = f"did you mean {near!r}? " if near else ""
        raise UserError(f"config {name!r}: unknown; {hint}one of {', '.join(names())}, or the path of a file")
    return FOLDER / f"{name}.py"


def module(name: str) -> ModuleType:
    """A config file as a module.

    Args:
        name: one of `names()`, or the path of a file that ends in `.py`.

    Raises:
        UserError: no such config.
    """
    file = Path(name) if name.endswith(".py") else path(name)
    if not file.is_file():
        raise UserError(f"config {name}: no such file; or one of {', '.join(names())}")
    spec = importlib.util.spec_from_file_location(f"hfgd_jax_config_{file.stem}", file)
    assert spec and spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def load(name: str, *choices: str, **arguments: Any) -> "ConfigDict":
    """A config by its name; every field of the result may be changed.

    The same as `--config configs/NAME.py:CHOICE,KEY=VALUE` on the command line.

    Args:
        name: one of `names()`, or the path of a config file of your own.
        choices: arguments that have no name: a row of `paper`, `tiny` or `without_data`.
        arguments: the file's others, which its first lines name; True stands for the name alone.

    Returns:
        The `ml_collections.ConfigDict`.

    Raises:
        UserError: no such config, or an argument that it does not have.

    >>> import hfgd_jax
    >>> config = hfgd_jax.configs.load("camvid", method="hfgd", backbone="resnet18")
    >>> config.model.upsampler, config.data.num_classes
    ('u_sfpn', 11)
    >>> hfgd_jax.configs.load("paper", "table9/sfpn").data.dataset
    'pascal_context'
    """
    named = (
        key if value is True else f"{key}={value}" for key, value in arguments.items() if value is not False
    )
    return module(name).get_config(",".join([*choices, *named]))
