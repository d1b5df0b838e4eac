"""Cross-entropy over the valid pixels: all of them, or the hardest."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from hfgd_jax.geometry import Geometry
from hfgd_jax.losses.blocks import each_pixel, weighted_sum
from hfgd_jax.losses.hard_pixels import hardest
from hfgd_jax.losses.pixels import over, pixel_cross_entropy, pixel_weights


def cross_entropy(
    logits: Float[Array, "b h w k"],
    labels: Integer[Array, "b H W"],
    *,
    geometry: Geometry,
    class_weights: Sequence[float] = (),
    hard_pixels: float = 1.0,
    divisor: Float[Array, ""] | float | None = None,
) -> Float[Array, ""]:
    """Weighted mean over the valid pixels of -log softmax at the label; float32.

    With class weights: sum(w_y * loss) / sum(w_y) over the valid pixels y of the batch, as in torch, so that
    a common factor of all weights changes neither this loss nor its size against the other losses. With
    `hard_pixels` both sums are over the hardest pixels (`hardest`).

    Args:
        logits: of the padded grid at any output stride; resized to the pixels here.
        labels: class ids in [0, k), or `IGNORE`; any integer dtype.
        geometry: of the grid.
        class_weights: k positive weights, or none.
        hard_pixels: the share of the pixels that count, in (0, 1].
        divisor: what the sum is divided by, in place of `count_pixels` of these labels and weights. In a
            batch without labels the loss is 0, and so are its gradients.
    """
    weights = pixel_weights(labels, class_weights)
    if divisor is None:
        divisor = jnp.sum(weights)
    if hard_pixels < 1:
        losses = each_pixel(pixel_cross_entropy, logits, labels, geometry=geometry)
        weights = hardest(losses, weights, hard_pixels)
    total = weighted_sum(pixel_cross_entropy, logits, labels, weights, geometry=geometry)
    return over(total, hard_pixels * divisor)
