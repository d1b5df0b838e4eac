"""Class-aware regularisations (CAR: Huang et al. 2022; paper, Sec. 3.2). Training only, all in float32.

Features x are those of the CAR linear layer, labels those of its size. An ignored pixel is of no class; a
class that is absent has the zero vector as its centre and stays in every sum and softmax. Products are taken
at full float32 precision, which accelerators do not do by default.
"""

import math

import jax
import jax.numpy as jnp
from jax.lax import Precision, stop_gradient
from jaxtyping import Array, Bool, Float, Integer

from hfgd_jax.geometry import IGNORE
from hfgd_jax.losses.pixels import one_hot

EPSILON = 1e-7
INTRA_FLOOR = 1e-5
CENTER_THRESHOLD = 0.5  # of the centre-to-centre loss, over K - 1
PIXEL_THRESHOLD = 0.25  # of the centre-to-pixel loss, over K - 1


def class_centers(
    features: Float[Array, "n h w c"], labels: Integer[Array, "n h w"], num_classes: int
) -> Float[Array, "k c"]:
    """Mean feature of each class over the whole batch; float32, the zero vector for an absent class.

    Under jit with a sharded batch the mean is over all devices.

    Args:
        features: of the CAR linear layer, any float dtype.
        labels: class ids or `IGNORE`, at the features' size.
        num_classes: k.
    """
    features = features.astype(jnp.float32)
    members = one_hot(labels, num_classes).astype(jnp.float32)
    sums = jnp.einsum("nhwk,nhwc->kc", members, features, precision=Precision.HIGHEST)
    counts = jnp.sum(members, axis=(0, 1, 2))
    return sums / jnp.maximum(counts, 1.0)[:, None]


def intra_class_loss(
    features: Float[Array, "n h w c"], labels: Integer[Array, "n h w"], centers: Float[Array, "k c"]
) -> Float[Array, ""]:
    """Pixels to their class centre: `(mean |x - sg(m_label)|)^2`, not below 1e-5.

    The mean is over images, pixels and channels; ignored pixels count 0 in it.
    """
    features, centers = features.astype(jnp.float32), stop_gradient(centers.astype(jnp.float32))
    members = one_hot(labels, centers.shape[0]).astype(jnp.float32)
    own = jnp.einsum("nhwk,kc->nhwc", members, centers, precision=Precision.HIGHEST)
    distance = jnp.where((labels != IGNORE)[..., None], jnp.abs(features - own), 0.0)
    return jnp.maximum(jnp.square(jnp.mean(distance)), INTRA_FLOOR)


def inter_class_center_loss(centers: Float[Array, "k c"]) -> Float[Array, ""]:
    """Centres to other centres: what their softmax similarity has above 0.5 / (K - 1); the mean squared."""
    centers = centers.astype(jnp.float32)
    k, c = centers.shape
    energy = jnp.matmul(centers, stop_gradient(centers).T, precision=Precision.HIGHEST) / math.sqrt(c)
    similarity = jax.nn.softmax(energy, axis=-1)
    return _excess(similarity, ~jnp.eye(k, dtype=bool), CENTER_THRESHOLD / (k - 1))


def inter_class_pixel_loss(
    features: Float[Array, "n h w c"], labels: Integer[Array, "n h w"], centers: Float[Array, "k c"]
) -> Float[Array, ""]:
    """Pixels to the centres of other classes: what their softmax has above 0.25 / (K - 1); the mean squared.

    A pixel's energy to its own class is that of the centre with itself. An ignored pixel has no own class:
    all its classes are others.
    """
    features, centers = features.astype(jnp.float32), stop_gradient(centers.astype(jnp.float32))
    k, c = centers.shape
    own = one_hot(labels, k)
    energy = jnp.einsum("nhwc,kc->nhwk", features, centers, precision=Precision.HIGHEST)
    energy = jnp.where(own, jnp.sum(jnp.square(centers), axis=-1), energy) / math.sqrt(c)
    similarity = jax.nn.softmax(energy, axis=-1)
    return _excess(similarity, ~own, PIXEL_THRESHOLD / (k - 1))


def _excess(
    similarity: Float[Array, "*rows k"], other: Bool[Array, "*rows k"], threshold: float
) -> Float[Array, ""]:
    """Squared mean over rows of the clipped sum, over other classes, of what is above the threshold."""
    counted = other & (similarity > threshold)
    excess = jnp.sum(jnp.where(counted, similarity - threshold, 0.0), axis=-1)
    return jnp.square(jnp.mean(jnp.clip(excess, EPSILON, 1.0 - EPSILON)))
