"""The weighted total of all losses of a training step."""

from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer
from ml_collections import ConfigDict

from hfgd_jax.geometry import Geometry, labels_at
from hfgd_jax.losses import car
from hfgd_jax.losses.cross_entropy import cross_entropy
from hfgd_jax.losses.dice import dice_loss
from hfgd_jax.losses.focal import focal_loss
from hfgd_jax.losses.pixels import count_pixels
from hfgd_jax.models.segmenter import Outputs


def loss_divisor(labels: Integer[Array, "b H W"], loss_config: ConfigDict) -> Float[Array, ""]:
    """What the cross-entropies' sums over pixels are divided by (`loss.divisor`); float32.

    `valid`: `count_pixels(labels, loss_config.class_weights)`. `all`: the number of all pixels, ignored ones
    and padding included, which thus count as a loss of 0; the public code's mean (docs/readings.md).
    """
    if loss_config.divisor == "all":
        return jnp.float32(labels.size)
    return count_pixels(labels, loss_config.class_weights)


def total_loss(
    outputs: Outputs,
    labels: Integer[Array, "b H W"],
    loss_config: ConfigDict,
    *,
    num_classes: int,
    geometry: Geometry,
    divisor: Float[Array, ""] | float | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The cross-entropies of teacher, student, probe and OCR's regions, Dice, and the CAR losses.

    Readings: with `focal_gamma` > 0 every cross-entropy is a focal loss, the auxiliary ones too; class
    weights apply to every one too; Dice and `hard_pixels` to teacher and student alone. Under gradient
    accumulation Dice, CAR and the choice of hard pixels are computed for each micro-batch by itself.

    Args:
        outputs: of a training call.
        labels: class ids or `geometry.IGNORE`, of the images' own size (before the model's padding).
        loss_config: `config.loss`: the weights `teacher`, `student`, `probe`, `regions`, `dice` (0: not
            computed) and `car`, `focal_gamma` (0: plain cross-entropy), `class_weights` (of each class, or
            none), `hard_pixels` (the share that counts) and `divisor`. `balance` must be "none": the weights
            that it asks for must be in `class_weights` already.
        num_classes: of the data set.
        geometry: the model's.
        divisor: of the cross-entropies, in place of `loss_divisor(labels, loss_config)`: gradient
            accumulation passes the whole batch's, divided by the number of micro-batches.

    Returns:
        The weighted total and its parts, unweighted; float32 scalars: those that apply of `teacher`,
        `student`, `probe`, `regions`, `teacher_dice`, `student_dice`, `car_intra`, `car_inter_center`,
        `car_inter_pixel`. Without a guide branch the prediction's cross-entropy is `student`.

    Raises:
        ValueError: `loss_config.balance` is not "none".
    """
    if loss_config.balance != "none":
        raise ValueError(f"loss.balance={loss_config.balance!r}: its class weights have not been computed")
    gamma, hard = loss_config.focal_gamma, loss_config.hard_pixels
    divisor = loss_divisor(labels, loss_config) if divisor is None else divisor
    entropy = partial(focal_loss, gamma=gamma) if gamma > 0 else cross_entropy
    entropy = partial(entropy, geometry=geometry, class_weights=loss_config.class_weights)
    parts, weights = {}, {}
    for name, logits in (
        ("teacher", outputs.guide_logits),
        ("student", outputs.logits),
        ("probe", outputs.probe_logits),
        ("regions", outputs.region_logits),
    ):
        if logits is None:
            continue
        mining = {"hard_pixels": hard} if hard < 1 and name in ("teacher", "student") else {}
        parts[name] = entropy(logits, labels, divisor=divisor, **mining)
        weights[name] = loss_config[name]
        if loss_config.dice > 0 and name in ("teacher", "student"):
            parts[f"{name}_dice"] = dice_loss(logits, labels, geometry=geometry)
            weights[f"{name}_dice"] = loss_config.dice
    if outputs.car_features is not None:
        parts |= _car_parts(outputs.car_features, labels, num_classes, geometry)
    total = jnp.float32(0.0)
    for name, value in parts.items():
        total += value * weights.get(name, loss_config.car)
    return total, parts


def _car_parts(
    features: Float[Array, "b h w c"], labels: Integer[Array, "b H W"], num_classes: int, geometry: Geometry
) -> dict[str, Float[Array, ""]]:
    shrunk = labels_at(labels, features.shape[1:3], geometry=geometry)
    centers = car.class_centers(features, shrunk, num_classes)
    return {
        "car_intra": car.intra_class_loss(features, shrunk, centers),
        "car_inter_center": car.inter_class_center_loss(centers),
        "car_inter_pixel": car.inter_class_pixel_loss(features, shrunk, centers),
    }
