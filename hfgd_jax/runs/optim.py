"""Optimizers, their schedule, and the moving average of what they train (paper, Sec. 4: the settings)."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int
from ml_collections import ConfigDict

BACKBONE = "backbone"  # the group of parameters that `optim.backbone_rate` is for


def learning_rate(optim: ConfigDict, steps: int) -> optax.Schedule:
    """Poly decay from `optim.learning_rate` to 0 over `steps`, after an optional linear warm-up from 0.

    The warm-up's steps (`warmup_steps`) count as part of `steps`.
    """
    warmup = warmup_steps(optim, steps)
    poly = optax.polynomial_schedule(optim.learning_rate, 0.0, optim.power, max(steps - warmup, 1))
    if not warmup:
        return poly
    rise = optax.linear_schedule(0.0, optim.learning_rate, warmup)
    return optax.join_schedules([rise, poly], [warmup])


def warmup_steps(optim: ConfigDict, steps: int) -> int:
    """`optim.warmup_steps`; a tenth of `steps` where it is more than all of them, as in a short try."""
    return optim.warmup_steps if optim.warmup_steps <= steps else steps // 10


def kernels(params: optax.Params) -> optax.Params:
    """A tree of bools: True for the kernels of convolutions and dense layers, which alone are decayed."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def make_optimizer(optim: ConfigDict, steps: int) -> optax.GradientTransformation:
    """SGD with momentum and L2 (plain), or AdamW with decoupled decay (advanced); both by `optim.name`.

    The updates of the group `backbone`, AdamW's decay included, are multiplied by `optim.backbone_rate`, as
    if its learning rate were; gradients are clipped before, all of them together. At 0 the group has no
    updates and no optimizer state. At 1 the state is that of the plain chain.
    """
    rate = learning_rate(optim, steps)
    clip = [optax.clip_by_global_norm(optim.clip_norm)] if optim.clip_norm else []
    if optim.name == "sgd":
        decay = optax.add_decayed_weights(optim.weight_decay, mask=kernels)
        optimizer = optax.chain(*clip, decay, optax.sgd(rate, momentum=optim.momentum))
    else:
        optimizer = optax.chain(*clip, optax.adamw(rate, weight_decay=optim.weight_decay, mask=kernels))
    if optim.backbone_rate == 1.0:
        return optimizer
    if optim.backbone_rate == 0.0:
        transforms = {"trained": optimizer, "frozen": optax.set_to_zero()}
        return optax.partition(
            transforms, lambda params: {k: "frozen" if k == BACKBONE else "trained" for k in params}
        )
    slower = optax.masked(
        optax.scale(optim.backbone_rate), lambda updates: {k: k == BACKBONE for k in updates}
    )
    return optax.chain(optimizer, slower)


def moving_average(
    average: optax.Params, values: optax.Params, decay: float, step: Int[Array, ""]
) -> optax.Params:
    """The exponential moving average of a model's variables (Polyak and Juditsky, 1992), one step on.

    `average + (1 - d) * (values - average)`, which leaves what does not change as it is to the last bit. d is
    `min(decay, (1 + step) / (10 + step))`, so that the average of a short run, too, is one of its last steps:
    the warm-up of TensorFlow's `tf.train.ExponentialMovingAverage`.

    Args:
        average: a tree of float32 arrays.
        values: the same tree, after this step's update.
        decay: in [0, 1).
        step: int32, 0 at the first update.
    """
    share = 1.0 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return optax.tree.add_scale(average, share, optax.tree.sub(values, average))
