"""The training losses: cross-entropy, focal, Dice, CAR, and their weighted total.

Not here: the models whose outputs they take (`models/`) and the step that differentiates (`training/`).
"""

from hfgd_jax.losses import car
from hfgd_jax.losses.balance import median_frequency
from hfgd_jax.losses.cross_entropy import cross_entropy
from hfgd_jax.losses.dice import dice_loss
from hfgd_jax.losses.focal import focal_loss
from hfgd_jax.losses.pixels import count_pixels
from hfgd_jax.losses.total import loss_divisor, total_loss

__all__ = [
    "car",
    "count_pixels",
    "cross_entropy",
    "dice_loss",
    "focal_loss",
    "loss_divisor",
    "median_frequency",
    "total_loss",
]
