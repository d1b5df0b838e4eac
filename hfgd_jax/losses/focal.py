"""The focal loss (Lin et al. 2017), of the paper's stronger settings (spec 2)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from hfgd_jax.geometry import Geometry
from hfgd_jax.losses.pixels import at_pixels, count_pixels, mean_of_valid, pixel_weights, surprise


def focal_loss(
    logits: Float[Array, "b h w k"],
    labels: Integer[Array, "b H W"],
    *,
    gamma: float,
    geometry: Geometry,
    class_weights: Sequence[float] = (),
    divisor: Float[Array, ""] | float | None = None,
    ignore_label: int = 255,
) -> Float[Array, ""]:
    """Weighted mean over the valid pixels of -(1 - p)^gamma log p, p the softmax at the label; float32.

    Softmax over the classes, not a sigmoid each, and no class weights unless they are asked for (readings:
    the paper cites the loss and gives no settings). The log of 1 - p is taken from the other classes'
    logits, so that neither value nor gradient breaks down as p goes to 1, for any gamma.

    Args:
        logits: of the padded grid at any output stride, at least two classes; resized to the pixels here.
        labels: class ids in [0, k), or `ignore_label`; any integer dtype.
        gamma: not negative; 0 gives the cross-entropy.
        geometry, class_weights, divisor, ignore_label: as of `cross_entropy`.
    """
    pixels = at_pixels(logits, labels, geometry=geometry, ignore_label=ignore_label)
    others = jax.nn.logsumexp(jnp.where(pixels.own, -jnp.inf, pixels.logits), axis=-1)
    log_rest = others - jax.nn.logsumexp(pixels.logits, axis=-1)
    losses = jnp.exp(gamma * log_rest) * surprise(pixels)
    if divisor is None:
        divisor = count_pixels(labels, class_weights, ignore_label=ignore_label)
    return mean_of_valid(losses, pixel_weights(pixels, class_weights), divisor)
