"""Cross-entropy over the valid pixels (spec 1): all of them, or the hardest."""

from collections.abc import Sequence

from jaxtyping import Array, Float, Integer

from hfgd_jax.geometry import Geometry
from hfgd_jax.losses.hard_pixels import hardest
from hfgd_jax.losses.pixels import at_pixels, count_pixels, mean_of_valid, pixel_weights, surprise


def cross_entropy(
    logits: Float[Array, "b h w k"],
    labels: Integer[Array, "b H W"],
    *,
    geometry: Geometry,
    class_weights: Sequence[float] = (),
    hard_pixels: float = 1.0,
    divisor: Float[Array, ""] | float | None = None,
    ignore_label: int = 255,
) -> Float[Array, ""]:
    """Weighted mean over the valid pixels of -log softmax at the label; float32.

    With class weights: sum(w_y * loss) / sum(w_y) over the valid pixels y of the batch, as torch has it, so
    that the weights' common factor changes nothing, and with it neither the learning rate's meaning nor the
    share of the other losses. With `hard_pixels` both sums are over the hardest pixels (`hardest`).

    Args:
        logits: of the padded grid at any output stride; resized to the pixels here.
        labels: class ids in [0, k), or `ignore_label`; any integer dtype.
        geometry: of the grid.
        class_weights: k positive weights, or none.
        hard_pixels: the share of the pixels that count, in (0, 1].
        divisor: what the sum is divided by, in place of `count_pixels` of these labels and weights. In a
            batch without labels the loss is 0, and so are its gradients.
        ignore_label: the label of a pixel that does not count.
    """
    pixels = at_pixels(logits, labels, geometry=geometry, ignore_label=ignore_label)
    losses, weights = surprise(pixels), pixel_weights(pixels, class_weights)
    if divisor is None:
        divisor = count_pixels(labels, class_weights, ignore_label=ignore_label)
    if hard_pixels < 1:
        weights = hardest(losses, weights, hard_pixels)
    return mean_of_valid(losses, weights, hard_pixels * divisor)
