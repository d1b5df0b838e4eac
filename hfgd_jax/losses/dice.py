"""The Dice loss (Milletari et al. 2016), one of the "stronger settings" of the paper's Table 10."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from hfgd_jax.geometry import Geometry
from hfgd_jax.losses.pixels import at_pixels

SMOOTH = 1.0  # pixels


def dice_loss(
    logits: Float[Array, "b h w k"],
    labels: Integer[Array, "b H W"],
    *,
    geometry: Geometry,
) -> Float[Array, ""]:
    """Mean over the classes present of 1 - (2 sum(p g) + 1) / (sum(p^2) + sum(g) + 1); float32.

    p is the softmax over the classes and g whether the class is the label; sums are over the valid pixels of
    all images: under jit of the global batch, under gradient accumulation of one micro-batch. Readings
    (docs/readings.md): the squares are Milletari's, for several classes; the smooth term is one pixel; a
    class that no label has is left out of the mean, as its overlap can only be 0.

    Args:
        logits: of the padded grid at any output stride; resized to the pixels here.
        labels: class ids in [0, k), or `IGNORE`; any integer dtype. Where all are ignored the loss is
            0, and so are its gradients.
        geometry: of the grid.
    """
    pixels = at_pixels(logits, labels, geometry=geometry)
    p = jnp.where(pixels.valid[..., None], jax.nn.softmax(pixels.logits, axis=-1), 0.0)
    axes = (0, 1, 2)
    overlap = jnp.sum(jnp.where(pixels.one_hot, p, 0.0), axis=axes)
    count = jnp.sum(pixels.one_hot, axis=axes, dtype=jnp.float32)
    dice = (2 * overlap + SMOOTH) / (jnp.sum(jnp.square(p), axis=axes) + count + SMOOTH)
    present = count > 0
    return jnp.sum(jnp.where(present, 1 - dice, 0.0)) / jnp.maximum(jnp.sum(present), 1)
