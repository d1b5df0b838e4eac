"""What the losses at the pixels share: logits at the labels' size, and which pixels and classes count."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from hfgd_jax.geometry import Geometry, to_pixels


class Pixels(NamedTuple):
    """Logits and labels of the same pixels.

    Attributes:
        logits: float32.
        own: whether a class is the pixel's label; none is where the pixel is ignored.
        valid: whether the pixel has a label.
    """

    logits: Float[Array, "b H W k"]
    own: Bool[Array, "b H W k"]
    valid: Bool[Array, "b H W"]


def at_pixels(
    logits: Float[Array, "b h w k"],
    labels: Integer[Array, "b H W"],
    *,
    geometry: Geometry,
    ignore_label: int = 255,
) -> Pixels:
    """Logits of the padded grid at any output stride, resized to the pixels; labels beside them.

    Args:
        logits: of any float dtype.
        labels: class ids in [0, k), or `ignore_label`; any integer dtype; of the images' own size.
        geometry: of the grid.
        ignore_label: the label of a pixel that does not count.
    """
    logits = to_pixels(logits.astype(jnp.float32), labels.shape[1:3], geometry=geometry)
    own = own_class(labels, logits.shape[-1], ignore_label)
    return Pixels(logits, own, labels != ignore_label)


def own_class(
    labels: Integer[Array, "b h w"], num_classes: int, ignore_label: int
) -> Bool[Array, "b h w num_classes"]:
    """Whether a class is the pixel's label; an ignored pixel is of no class.

    A comparison with every class, not a gather: the gradient of a gather is a scatter.
    """
    own = labels.astype(jnp.int32)[..., None] == jnp.arange(num_classes)
    return own & (labels != ignore_label)[..., None]


def surprise(pixels: Pixels) -> Float[Array, "b H W"]:
    """-log softmax at the label; means nothing at an ignored pixel."""
    own = jnp.sum(jnp.where(pixels.own, pixels.logits, 0.0), axis=-1)
    return jax.nn.logsumexp(pixels.logits, axis=-1) - own


def mean_of_valid(
    losses: Float[Array, "b H W"],
    valid: Bool[Array, "b H W"],
    valid_pixels: Float[Array, ""] | float | None = None,
) -> Float[Array, ""]:
    """Sum over the valid pixels, over `valid_pixels` (their number by default), which is never below one."""
    if valid_pixels is None:
        valid_pixels = jnp.sum(valid)
    divisor = jnp.maximum(jnp.asarray(valid_pixels, jnp.float32), 1.0)
    return jnp.sum(jnp.where(valid, losses, 0.0)) / divisor
