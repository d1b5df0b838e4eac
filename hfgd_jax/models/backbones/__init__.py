"""Backbones: images in, the pyramid {4, 8, 16, 32} out."""

from hfgd_jax.models.backbones import convnext, efficientnet, resnet, swin
from hfgd_jax.models.backbones.base import NORMALIZATIONS, Backbone

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
    "efficientnet_b0": efficientnet.entry("efficientnet_b0"),
    "efficientnet_b1": efficientnet.entry("efficientnet_b1"),
    "efficientnet_b2": efficientnet.entry("efficientnet_b2"),
    "efficientnet_b3": efficientnet.entry("efficientnet_b3"),
    "efficientnet_b4": efficientnet.entry("efficientnet_b4"),
    "efficientnet_b5": efficientnet.entry("efficientnet_b5"),
    "efficientnet_b6": efficientnet.entry("efficientnet_b6"),
    "efficientnet_b7": efficientnet.entry("efficientnet_b7"),
    "efficientnet_lite0": efficientnet.entry("efficientnet_lite0"),
    "efficientnet_lite1": efficientnet.entry("efficientnet_lite1"),
    "efficientnet_lite2": efficientnet.entry("efficientnet_lite2"),
    "efficientnet_lite3": efficientnet.entry("efficientnet_lite3"),
    "efficientnet_lite4": efficientnet.entry("efficientnet_lite4"),
}


def normalization(name: str, choice: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, in RGB 0-255, that the backbone's weights expect.

    Args:
        name: a key of `BACKBONES`.
        choice: a key of `NORMALIZATIONS`; empty for the backbone's own.
    """
    return NORMALIZATIONS[choice] if choice else BACKBONES[name].normalization


def channels(name: str) -> dict[int, int]:
    """Channels of each level of the backbone's pyramid."""
    return BACKBONES[name].channels
