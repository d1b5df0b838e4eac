"""The focal loss (Lin et al. 2017), one of the "stronger settings" of the paper's Table 10."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from hfgd_jax.geometry import Geometry
from hfgd_jax.losses.blocks import weighted_sum
from hfgd_jax.losses.pixels import Pixels, over, pixel_cross_entropy, pixel_weights


def focal_loss(
    logits: Float[Array, "b h w k"],
    labels: Integer[Array, "b H W"],
    *,
    gamma: float,
    geometry: Geometry,
    class_weights: Sequence[float] = (),
    divisor: Float[Array, ""] | float | None = None,
) -> Float[Array, ""]:
    """Weighted mean over the valid pixels of -(1 - p)^gamma log p, p the softmax at the label; float32.

    Softmax over the classes, not a sigmoid each, and no class weights by default (readings, docs/readings.md:
    the paper cites the loss and gives no settings). The log of 1 - p is computed from the other classes'
    logits, so that value and gradient stay finite as p goes to 1, for any gamma.

    Args:
        logits: of the padded grid at any output stride, at least two classes; resized to the pixels here.
        labels: class ids in [0, k), or `IGNORE`; any integer dtype.
        gamma: not negative; 0 gives the cross-entropy.
        geometry, class_weights, divisor: as of `cross_entropy`.
    """

    def loss(pixels: Pixels) -> Float[Array, "b H W"]:
        others = jax.nn.logsumexp(jnp.where(pixels.one_hot, -jnp.inf, pixels.logits), axis=-1)
        log_rest = others - jax.nn.logsumexp(pixels.logits, axis=-1)
        return jnp.exp(gamma * log_rest) * pixel_cross_entropy(pixels)

    weights = pixel_weights(labels, class_weights)
    divisor = jnp.sum(weights) if divisor is None else divisor
    return over(weighted_sum(loss, logits, labels, weights, geometry=geometry), divisor)
