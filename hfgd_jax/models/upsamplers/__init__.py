"""Upsamplers (paper, Sec. 3.3 and 5.5): the pyramid in, the low feature at the output stride out.

Not here: axial attention on the low feature (`models/attention.py`), the classifier (`models/guidance.py`).
"""

from collections.abc import Callable

from hfgd_jax.config import names
from hfgd_jax.models.upsamplers.base import Upsampler

__all__ = ["UPSAMPLERS", "Upsampler"]

UPSAMPLERS: dict[str, Callable[..., Upsampler]] = {
    name: names.find(__name__, place) for name, place in names.UPSAMPLERS.items()
}
