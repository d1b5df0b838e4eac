"""The losses and their weighted total (spec 1)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer
from ml_collections import ConfigDict

from hfgd_jax.geometry import Geometry, labels_at
from hfgd_jax.losses import car
from hfgd_jax.losses.cross_entropy import cross_entropy
from hfgd_jax.models.segmenter import Outputs

__all__ = ["car", "cross_entropy", "total_loss"]


def total_loss(
    outputs: Outputs,
    labels: Integer[Array, "b H W"],
    loss_config: ConfigDict,
    *,
    num_classes: int,
    geometry: Geometry,
    valid_pixels: Float[Array, ""] | float | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Teacher, student and probe cross-entropy and the CAR losses.

    Args:
        outputs: of a training call.
        labels: class ids or 255, of the images' own size (before the model's padding).
        loss_config: `config.loss`: the weights `teacher`, `student`, `probe` and `car`.
        num_classes: of the data set.
        geometry: the model's.
        valid_pixels: overrides the divisor of the cross-entropies: gradient accumulation hands in the whole
            batch's number.

    Returns:
        The weighted total and its parts, unweighted; float32 scalars. Without a guide branch the
        prediction's cross-entropy is `student`.
    """
    parts = {}
    for name, logits in (
        ("teacher", outputs.guide_logits),
        ("student", outputs.logits),
        ("probe", outputs.probe_logits),
    ):
        if logits is not None:
            parts[name] = cross_entropy(logits, labels, geometry=geometry, valid_pixels=valid_pixels)
    if outputs.car_features is not None:
        features = outputs.car_features
        shrunk = labels_at(labels, features.shape[1:3], geometry=geometry)
        centers = car.class_centers(features, shrunk, num_classes)
        parts["car_intra"] = car.intra_class_loss(features, shrunk, centers)
        parts["car_inter_center"] = car.inter_class_center_loss(centers)
        parts["car_inter_pixel"] = car.inter_class_pixel_loss(features, shrunk, centers)
    total = jnp.float32(0.0)
    for name, value in parts.items():
        total += value * loss_config["car" if name.startswith("car_") else name]
    return total, parts
