"""How other projects name the tensors of each backbone: one table per project and family of networks.

Not here: what reads files and fills variables (`weights/pretrained.py`), the networks (`models/backbones/`).
"""

from collections.abc import Callable

from hfgd_jax.models import backbones
from hfgd_jax.weights.names import convnext, efficientnet, resnet, swin
from hfgd_jax.weights.names.base import Naming

NAMINGS: dict[str, Callable[[str], tuple[Naming, ...]]] = {
    **dict.fromkeys(backbones.resnet.DEPTHS, resnet.namings),
    **dict.fromkeys(backbones.convnext.VARIANTS, convnext.namings),
    **dict.fromkeys(backbones.swin.VARIANTS, swin.namings),
    **dict.fromkeys(backbones.efficientnet.SCALES, efficientnet.namings),
}


def namings(backbone_name: str) -> tuple[Naming, ...]:
    """The namings that weight files of a backbone come in, the exported default first.

    Args:
        backbone_name: a key of `models.BACKBONES`.
    """
    return NAMINGS[backbone_name](backbone_name)
