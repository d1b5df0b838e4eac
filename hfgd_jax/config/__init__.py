"""A run's configuration: its fields with their defaults, its methods, and what the fields may hold.

Not here: the config files themselves (`configs/`), and what a config is built into (`runs/system.py`).
"""

from hfgd_jax.config.checks import validate
from hfgd_jax.config.fields import (
    METHODS,
    default,
    differences,
    from_json,
    parse_arguments,
    set_backbone,
    set_method,
    set_plain,
    set_tiny,
    to_json,
)
from hfgd_jax.config.names import BACKBONES, CONTEXTS, UPSAMPLERS

__all__ = [
    "BACKBONES",
    "CONTEXTS",
    "METHODS",
    "UPSAMPLERS",
    "default",
    "differences",
    "from_json",
    "parse_arguments",
    "set_backbone",
    "set_method",
    "set_plain",
    "set_tiny",
    "to_json",
    "validate",
]
