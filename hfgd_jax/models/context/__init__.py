"""Context encoders: the backbone's last feature in, the high-level feature out (spec 1.4)."""

from collections.abc import Callable
from functools import partial

from hfgd_jax.models.context.aspp import AtrousSpatialPyramidPooling
from hfgd_jax.models.context.base import ContextEncoder, Encoded
from hfgd_jax.models.context.cae import ContextAugmentedEncoder
from hfgd_jax.models.context.identity import Identity
from hfgd_jax.models.context.ocr import ObjectContext
from hfgd_jax.models.context.ppm import PyramidPooling
from hfgd_jax.models.context.self_attention import SelfAttentionEncoder

__all__ = ["CONTEXTS", "ContextEncoder", "Encoded"]

CONTEXTS: dict[str, Callable[..., ContextEncoder]] = {
    "identity": Identity,
    "aspp": AtrousSpatialPyramidPooling,
    "ppm": PyramidPooling,
    "ocr": ObjectContext,
    "sa": SelfAttentionEncoder,
    "sa_car": partial(SelfAttentionEncoder, car=True),
    "cae": ContextAugmentedEncoder,
}
