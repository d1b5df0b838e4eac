"""HFGD, High-level Feature Guided Decoding for semantic segmentation, in JAX and Flax.

    import hfgd_jax

    config = hfgd_jax.configs.load("camvid", method="hfgd", backbone="resnet18")
    hfgd_jax.train(config, "runs/camvid")
    hfgd_jax.evaluate("runs/camvid")
    prediction = hfgd_jax.load("runs/camvid")("photo.jpg")

Importing it loads neither jax nor anything else that is large, and defines no flags; docs/api.md.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hfgd_jax import configs
    from hfgd_jax.api import Model, Prediction, Scores, build_model, evaluate, load, train
    from hfgd_jax.errors import UserError

__version__ = "0.1.0"

__all__ = [
    "Model",
    "Prediction",
    "Scores",
    "UserError",
    "__version__",
    "build_model",
    "configs",
    "evaluate",
    "load",
    "train",
]

_FROM = {"UserError": "hfgd_jax.errors"}  # the others come from the API


def __getattr__(name: str) -> Any:
    if name == "configs":
        return importlib.import_module("hfgd_jax.configs")
    if name in __all__:
        return getattr(importlib.import_module(_FROM.get(name, "hfgd_jax.api")), name)
    raise AttributeError(f"module 'hfgd_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
