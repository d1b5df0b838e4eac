"""What the pixel losses share: logits at the size of the labels, and the weight of each pixel."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from hfgd_jax.geometry import IGNORE, Geometry, to_pixels


class Pixels(NamedTuple):
    """Logits and labels of the same pixels.

    Attributes:
        logits: float32.
        one_hot: whether a class is the pixel's label; False for every class where the pixel is ignored.
        valid: whether the pixel has a label.
    """

    logits: Float[Array, "b H W k"]
    one_hot: Bool[Array, "b H W k"]
    valid: Bool[Array, "b H W"]


def at_pixels(
    logits: Float[Array, "b h w k"], labels: Integer[Array, "b H W"], *, geometry: Geometry
) -> Pixels:
    """Resizes logits of the padded grid, at any output stride, to the pixels of the labels.

    Args:
        logits: of any float dtype.
        labels: class ids in [0, k), or `IGNORE`; any integer dtype; of the images' own size.
        geometry: of the grid.
    """
    logits = to_pixels(logits.astype(jnp.float32), labels.shape[1:3], geometry=geometry)
    return Pixels(logits, one_hot(labels, logits.shape[-1]), labels != IGNORE)


def one_hot(labels: Integer[Array, "b h w"], num_classes: int) -> Bool[Array, "b h w num_classes"]:
    """Whether a class is the pixel's label; False for every class where the pixel is ignored.

    The losses take sums with it where they could index by label: the gradient of a gather is a slow scatter.

    Args:
        labels: class ids, or `IGNORE`; any integer dtype.
        num_classes: at most `IGNORE`.
    """
    return labels.astype(jnp.int32)[..., None] == jnp.arange(num_classes)


def pixel_cross_entropy(pixels: Pixels) -> Float[Array, "b H W"]:
    """-log softmax at the label; undefined where the pixel is ignored."""
    of_label = jnp.sum(jnp.where(pixels.one_hot, pixels.logits, 0.0), axis=-1)
    return jax.nn.logsumexp(pixels.logits, axis=-1) - of_label


def pixel_weights(
    labels: Integer[Array, "b H W"], class_weights: Sequence[float] = ()
) -> Float[Array, "b H W"]:
    """The weight of each pixel: its class's, or 1 without class weights; 0 where ignored. Float32.

    Args:
        labels: class ids in [0, k), or `IGNORE`; any integer dtype.
        class_weights: k weights, or none.
    """
    if not len(class_weights):
        return (labels != IGNORE).astype(jnp.float32)
    of_class = jnp.asarray(class_weights, jnp.float32)
    return jnp.sum(jnp.where(one_hot(labels, len(class_weights)), of_class, 0.0), axis=-1)


def count_pixels(labels: Integer[Array, "b H W"], class_weights: Sequence[float] = ()) -> Float[Array, ""]:
    """The number of labelled pixels or, with class weights, the sum of their weights; float32.

    The cross-entropies are divided by it. Under jit of a sharded batch it is that of all devices.

    Args:
        labels: class ids in [0, k), or `IGNORE`; any integer dtype.
        class_weights: k weights, or none.
    """
    return jnp.sum(pixel_weights(labels, class_weights))


def over(total: Float[Array, ""], divisor: Float[Array, ""] | float) -> Float[Array, ""]:
    """`total / divisor`, float32; `total` itself, which is 0 then, where the divisor is 0."""
    divisor = jnp.asarray(divisor, jnp.float32)
    return total / jnp.where(divisor > 0, divisor, 1.0)
