"""Backbones: images in, the pyramid {4, 8, 16, 32} out (spec 1.6)."""

from hfgd_jax.models.backbones import resnet
from hfgd_jax.models.backbones.base import Backbone

BACKBONES: dict[str, Backbone] = {
    "resnet18": resnet.entry("resnet18"),
    "resnet50": resnet.entry("resnet50"),
    "resnet101": resnet.entry("resnet101"),
}


def normalization(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, in RGB 0-255, that the backbone's weights expect."""
    return BACKBONES[name].normalization


def channels(name: str) -> dict[int, int]:
    """Channels of each level of the backbone's pyramid."""
    return BACKBONES[name].channels
