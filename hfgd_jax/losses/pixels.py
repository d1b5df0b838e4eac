"""What the losses at the pixels share: logits at the labels' size, and how much each pixel counts."""

from collections.abc import Sequence
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


def pixel_weights(pixels: Pixels, class_weights: Sequence[float] = ()) -> Float[Array, "b H W"]:
    """How much each pixel counts: its class's weight (1 where there are none), 0 where ignored."""
    if not len(class_weights):
        return pixels.valid.astype(jnp.float32)
    return _own_weight(pixels.own, class_weights)


def count_pixels(
    labels: Integer[Array, "b H W"], class_weights: Sequence[float] = (), *, ignore_label: int = 255
) -> Float[Array, ""]:
    """The number of labelled pixels or, with class weights, the sum of theirs; float32.

    It is what the cross-entropies are divided by. Under jit of a sharded batch it is of all devices.

    Args:
        labels: class ids in [0, k), or `ignore_label`; any integer dtype.
        class_weights: k weights, or none.
        ignore_label: the label of a pixel that does not count.
    """
    if not len(class_weights):
        return jnp.sum(labels != ignore_label).astype(jnp.float32)
    return jnp.sum(_own_weight(own_class(labels, len(class_weights), ignore_label), class_weights))


def mean_of_valid(
    losses: Float[Array, "b H W"], weights: Float[Array, "b H W"], divisor: Float[Array, ""] | float
) -> Float[Array, ""]:
    """Weighted sum of the losses over `divisor`; 0 where that is 0. What has no weight may hold anything."""
    divisor = jnp.asarray(divisor, jnp.float32)
    total = jnp.sum(jnp.where(weights > 0, weights * losses, 0.0))
    return total / jnp.where(divisor > 0, divisor, 1.0)


def _own_weight(own: Bool[Array, "b H W k"], class_weights: Sequence[float]) -> Float[Array, "b H W"]:
    return jnp.sum(jnp.where(own, jnp.asarray(class_weights, jnp.float32), 0.0), axis=-1)
