"""Optimizers and their schedule (spec 2)."""

import jax
import optax
from ml_collections import ConfigDict


def learning_rate(optim: ConfigDict, steps: int) -> optax.Schedule:
    """Poly decay from `optim.learning_rate` to 0 over `steps`, after an optional linear warm-up from 0.

    The warm-up's steps count as part of `steps`.
    """
    warmup = optim.warmup_steps
    poly = optax.polynomial_schedule(optim.learning_rate, 0.0, optim.power, max(steps - warmup, 1))
    if not warmup:
        return poly
    rise = optax.linear_schedule(0.0, optim.learning_rate, warmup)
    return optax.join_schedules([rise, poly], [warmup])


def kernels(params: optax.Params) -> optax.Params:
    """A tree of bools: True for the kernels of convolutions and dense layers, which alone are decayed."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def make_optimizer(optim: ConfigDict, steps: int) -> optax.GradientTransformation:
    """SGD with momentum and L2 (plain), or AdamW with decoupled decay (advanced); both by `optim.name`."""
    rate = learning_rate(optim, steps)
    clip = [optax.clip_by_global_norm(optim.clip_norm)] if optim.clip_norm else []
    if optim.name == "sgd":
        return optax.chain(
            *clip,
            optax.add_decayed_weights(optim.weight_decay, mask=kernels),
            optax.sgd(rate, momentum=optim.momentum),
        )
    return optax.chain(*clip, optax.adamw(rate, weight_decay=optim.weight_decay, mask=kernels))
