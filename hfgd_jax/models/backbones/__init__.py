"""Backbones: images in, the pyramid {4, 8, 16, 32} out (spec 1.6)."""

from hfgd_jax.models.backbones import convnext, resnet, swin
from hfgd_jax.models.backbones.base import Backbone

BACKBONES: dict[str, Backbone] = {
    "resnet18": resnet.entry("resnet18"),
    "resnet50": resnet.entry("resnet50"),
    "resnet101": resnet.entry("resnet101"),
    "resnet50d": resnet.entry("resnet50d"),
    "resnet101d": resnet.entry("resnet101d"),
    "convnext_a": convnext.entry("convnext_a"),
    "convnext_t": convnext.entry("convnext_t"),
    "convnext_s": convnext.entry("convnext_s"),
    "convnext_b": convnext.entry("convnext_b"),
    "convnext_l": convnext.entry("convnext_l"),
    "swin_t": swin.entry("swin_t"),
    "swin_s": swin.entry("swin_s"),
    "swin_b": swin.entry("swin_b"),
    "swin_l": swin.entry("swin_l"),
}


def normalization(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, in RGB 0-255, that the backbone's weights expect."""
    return BACKBONES[name].normalization


def channels(name: str) -> dict[int, int]:
    """Channels of each level of the backbone's pyramid."""
    return BACKBONES[name].channels
