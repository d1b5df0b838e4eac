"""What the fields of a config mean (from the comments of `fields.py`), and where its values come from."""

import inspect
import re
from collections.abc import Collection

from ml_collections import ConfigDict

from hfgd_jax.config import fields

_GROUP = re.compile(r"def _(\w+)\(\) -> ConfigDict:")
_INNER = re.compile(r'\s+"(\w+)": _\w+\(\),')
_FIELD = re.compile(r'\s+"(\w+)": .*?,  # (.+)')


def meanings() -> dict[str, str]:
    """Dotted name of each field -> its meaning in a line, in the order of `fields.py`."""
    found: dict[str, dict[str, str]] = {}
    parents, group = {}, ""
    for line in inspect.getsource(fields).splitlines():
        if match := _GROUP.fullmatch(line):
            group = match[1]
            found[group] = {}
        elif group and (match := _INNER.fullmatch(line)):
            parents[match[1]] = f"{group}."
        elif group and (match := _FIELD.fullmatch(line)):
            found[group][match[1]] = match[2]
    return {
        f"{parents.get(group, '')}{group}.{name}": meaning
        for group, members in found.items()
        for name, meaning in members.items()
    }


def options() -> str:
    """Every field as an option, with its default and its meaning: a line each."""
    defaults = fields.flat(fields.default())
    return "\n".join(
        f"  --config.{name}={defaults[name]!r}\n      {text}" for name, text in meanings().items()
    )


def values(config: ConfigDict, overridden: Collection[str]) -> str:
    """Every field of a config with its value and where that comes from: a line each.

    Args:
        config: of a run.
        overridden: names of the fields that the command line gave.
    """
    defaults, lines = fields.flat(fields.default()), []
    for name, value in fields.flat(config).items():
        source = "default" if value == defaults[name] else "config file"
        lines.append(f"config.{name} = {value!r}  ({'command line' if name in overridden else source})")
    return "\n".join(lines)
