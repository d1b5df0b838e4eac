"""Context encoders ("extra encoding", paper, Sec. 3.2): the backbone's last feature to the high-level one.

Not here: the class tokens that classify the high-level feature (`models/guidance.py`) and the CAR losses.
"""

from collections.abc import Callable

from hfgd_jax.config import names
from hfgd_jax.models.context.base import ContextEncoder, Encoded

__all__ = ["CONTEXTS", "ContextEncoder", "Encoded"]

CONTEXTS: dict[str, Callable[..., ContextEncoder]] = {
    name: names.find(__name__, place) for name, place in names.CONTEXTS.items()
}
