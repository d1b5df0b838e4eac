"""Upsamplers: the pyramid in, the low feature at the output stride out (spec 1.3)."""

from collections.abc import Callable
from functools import partial

from hfgd_jax.models.upsamplers.base import Upsampler
from hfgd_jax.models.upsamplers.deeplabv3plus import DeepLabV3Plus
from hfgd_jax.models.upsamplers.fapn import FaPN
from hfgd_jax.models.upsamplers.none import NoUpsampler
from hfgd_jax.models.upsamplers.semantic_fpn import SemanticFPN
from hfgd_jax.models.upsamplers.upernet import UPerNet

__all__ = ["UPSAMPLERS", "Upsampler"]

UPSAMPLERS: dict[str, Callable[..., Upsampler]] = {
    "none": NoUpsampler,
    "sfpn": SemanticFPN,
    "u_sfpn": partial(SemanticFPN, lateral_kernel=3),
    "fapn": FaPN,
    "upernet": UPerNet,
    "deeplabv3plus": DeepLabV3Plus,
}
