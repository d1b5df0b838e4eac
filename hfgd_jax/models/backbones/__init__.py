"""Backbones: normalised images in, the pyramid {4, 8, 16, 32} out.

Not here: the names of their tensors in other projects' files (`weights/names/`).
"""

from hfgd_jax.config import names
from hfgd_jax.models.backbones.base import NORMALIZATIONS, Backbone

BACKBONES: dict[str, Backbone] = {
    name: names.find(__name__, place)(name) for name, place in names.BACKBONES.items()
}


def normalization(name: str, choice: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, in RGB 0-255, that the backbone's weights expect.

    Args:
        name: a key of `BACKBONES`.
        choice: a key of `NORMALIZATIONS`; empty for the backbone's own.
    """
    return NORMALIZATIONS[choice] if choice else BACKBONES[name].normalization
