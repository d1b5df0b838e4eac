"""Tiny models with random numbers that neither die nor grow, for tests of exports; and pictures."""

import numpy as np
from flax.traverse_util import unflatten_dict

from hfgd_jax import config as configuration
from hfgd_jax.export.program import Program

# Runs a bundle's loader where nothing but jax, numpy and what they need can be imported.
ALONE = """
import importlib.metadata, importlib.util, sys

class Wall:
    needed = {"jax", "jaxlib", "numpy", "ml_dtypes", "flatbuffers", "opt_einsum", "scipy"}
    others = {"hfgd_jax", *importlib.metadata.packages_distributions()} - needed

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name.split(".")[0] in self.others else None

    def create_module(self, spec):
        raise ModuleNotFoundError(f"not here: {spec.name}")

    exec_module = create_module

sys.meta_path.insert(0, Wall())
sys.path.insert(0, sys.argv[1])
import numpy as np, loader

pictures = np.load(sys.argv[2])
results = {}
for dtype in ("float32", "bfloat16"):
    model = loader.load(sys.argv[1], dtype)
    for name in pictures.files:
        results[f"{dtype} {name} masks"] = model(pictures[name])
        results[f"{dtype} {name} logits"] = model(pictures[name], logits=True)
np.savez(sys.argv[3], **results)
print(len(model.classes), model.palette.shape)
"""


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
