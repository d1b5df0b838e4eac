"""Tiny models with random numbers that neither die nor grow, for tests of exports; and pictures."""

import numpy as np
from flax.traverse_util import unflatten_dict

from hfgd_jax import config as configuration
from hfgd_jax.export.program import Program


def tiny(backbone="resnet18", **model):
    """A tiny HFGD config with fields of `model` changed (double underscores for dots)."""
    config = configuration.default()
    configuration.set_method(config, "hfgd")
    configuration.set_backbone(config, backbone)
    configuration.set_tiny(config)
    config.model.update_from_flattened_dict({k.replace("__", "."): v for k, v in model.items()})
    configuration.validate(config)
    return config


def random_variables(config, seed=0):
    """Variables whose features neither die nor grow."""
    rng = np.random.default_rng(seed)

    def draw(name, leaf):
        if name.endswith(("/var", "/scale")):
            return rng.uniform(0.5, 1.5, leaf.shape)
        if name.endswith("layer_scale"):
            return np.full(leaf.shape, 0.3)
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 100
        return rng.normal(0, fan_in**-0.5, leaf.shape)

    abstract = Program(config, "float32").abstract
    flat = {name: draw(name, leaf).astype(np.float32) for name, leaf in abstract.items()}
    variables = unflatten_dict(flat, sep="/")
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)
