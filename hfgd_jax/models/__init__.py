"""The networks: backbones, context encoders, upsamplers and the segmenter that joins them; counting MACs.

Not here: losses (`losses/`), weight files and their names (`weights/`), optimizers and checkpoints (`runs/`).
"""

from hfgd_jax.models.backbones import BACKBONES
from hfgd_jax.models.build import build_model, signed_features
from hfgd_jax.models.context import CONTEXTS
from hfgd_jax.models.segmenter import Outputs, Segmenter
from hfgd_jax.models.upsamplers import UPSAMPLERS

__all__ = ["BACKBONES", "CONTEXTS", "UPSAMPLERS", "Outputs", "Segmenter", "build_model", "signed_features"]
