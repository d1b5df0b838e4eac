"""Cross-entropy over the valid pixels (spec 1)."""

from jaxtyping import Array, Float, Integer

from hfgd_jax.geometry import Geometry
from hfgd_jax.losses.pixels import at_pixels, mean_of_valid, surprise


def cross_entropy(
    logits: Float[Array, "b h w k"],
    labels: Integer[Array, "b H W"],
    *,
    geometry: Geometry,
    valid_pixels: Float[Array, ""] | float | None = None,
    ignore_label: int = 255,
) -> Float[Array, ""]:
    """Mean over the valid pixels of -log softmax at the label; float32.

    Args:
        logits: of the padded grid at any output stride; resized to the pixels here.
        labels: class ids in [0, k), or `ignore_label`; any integer dtype.
        geometry: of the grid.
        valid_pixels: the divisor; by default the number of labels that are not ignored. Never below one, so
            a batch without labels gives 0 and zero gradients.
        ignore_label: the label of a pixel that does not count.
    """
    pixels = at_pixels(logits, labels, geometry=geometry, ignore_label=ignore_label)
    return mean_of_valid(surprise(pixels), pixels.valid, valid_pixels)
