"""Cross-entropy over the valid pixels (spec 1)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from hfgd_jax.geometry import Geometry, to_pixels


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
    """
    logits = to_pixels(logits.astype(jnp.float32), labels.shape[1:3], geometry=geometry)
    valid = labels != ignore_label
    labels = jnp.where(valid, labels, 0).astype(jnp.int32)
    # A comparison with every class, not a gather: the gradient of a gather is a scatter.
    own = labels[..., None] == jnp.arange(logits.shape[-1])
    losses = jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(own, logits, 0.0), axis=-1)
    if valid_pixels is None:
        valid_pixels = jnp.sum(valid)
    divisor = jnp.maximum(jnp.asarray(valid_pixels, jnp.float32), 1.0)
    return jnp.sum(jnp.where(valid, losses, 0.0)) / divisor
