"""A run's configuration: its fields with their defaults, its methods, and what the fields may hold.

Not here: the config files themselves (`configs/`), and what a config is built into (`runs/system.py`).
"""

from hfgd_jax.config.checks import validate
from hfgd_jax.config.fields import (
    METHODS,
    check_field,
    default,
    differences,
    from_json,
    set_backbone,
    set_method,
    set_plain,
    set_tiny,
    set_without_data,
    to_json,
)
from hfgd_jax.config.names import BACKBONES, CONTEXTS, UPSAMPLERS
from hfgd_jax.config.recipe import parse_arguments

__all__ = [
    "BACKBONES",
    "CONTEXTS",
    "METHODS",
    "UPSAMPLERS",
    "check_field",
    "default",
    "differences",
    "from_json",
    "parse_arguments",
    "set_backbone",
    "set_method",
    "set_plain",
    "set_tiny",
    "set_without_data",
    "to_json",
    "validate",
]
