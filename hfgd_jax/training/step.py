"""The training step, a pure function of state and batch; its compilation and the memory it needs."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from hfgd_jax import losses
from hfgd_jax.errors import UserError
from hfgd_jax.runs import optim
from hfgd_jax.runs.system import System, TrainState
from hfgd_jax.runtime import sharding


def make_gradient(system: System) -> Callable[..., tuple[Any, tuple[dict, Any]]]:
    """`(params, batch_stats, image, label, divisor, key) -> (gradient, (parts, batch_stats))`.

    `parts` are the unweighted losses and their weighted sum, `loss`.
    """
    config, model = system.config, system.model

    def loss_fn(params, batch_stats, image, label, divisor, key):
        outputs, updates = model.apply(
            {"params": params, "batch_stats": batch_stats},
            image,
            train=True,
            mutable=["batch_stats"],
            rngs={"stochastic": key},
        )
        loss, parts = losses.total_loss(
            outputs,
            label,
            config.loss,
            num_classes=config.data.num_classes,
            geometry=config.model.geometry,
            divisor=divisor,
        )
        return loss, (parts | {"loss": loss}, updates["batch_stats"])

    return jax.grad(loss_fn, has_aux=True)


def make_train_step(system: System) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """The pure function `(state, batch) -> (state, metrics)` of one optimizer step.

    The batch (`image` uint8 `[B, H, W, 3]`, `label` uint8 `[B, H, W]`) is cut into `train.accumulate`
    micro-batches; batch norm and CAR see one micro-batch at a time, the cross-entropies are divided by the
    whole batch's `losses.loss_divisor`. Metrics are float32 scalars: `loss`, its unweighted parts,
    `learning_rate` (and `learning_rate/backbone` where that is another), `gradient_norm`, and
    `gradient_norm/PART` of each top-level group of parameters.
    """
    rate = optim.learning_rate(system.config.optim, system.config.train.steps)
    pieces, gradient = system.config.train.accumulate, make_gradient(system)
    decay, backbone_rate = system.config.train.ema_decay, system.config.optim.backbone_rate

    def accumulated(params, batch_stats, image, label, divisor, key):
        def piece(batch_stats, inputs):
            image, label, key = inputs
            grads, (parts, batch_stats) = gradient(params, batch_stats, image, label, divisor / pieces, key)
            return batch_stats, (grads, parts)

        # The rows of a piece lie `pieces` apart, so that each device keeps its share of every piece.
        image, label = (jnp.moveaxis(x.reshape(-1, pieces, *x.shape[1:]), 1, 0) for x in (image, label))
        batch_stats, stacked = jax.lax.scan(piece, batch_stats, (image, label, jax.random.split(key, pieces)))
        grads, parts = jax.tree.map(lambda x: jnp.mean(x, 0), stacked)
        return grads, (parts, batch_stats)

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(state.rng, state.step)
        divisor = losses.loss_divisor(batch["label"], system.config.loss)
        grads, (parts, batch_stats) = (gradient if pieces == 1 else accumulated)(
            state.params, state.batch_stats, batch["image"], batch["label"], divisor, key
        )
        updates, opt_state = system.optimizer.update(grads, state.opt_state, state.params)
        parts |= {"learning_rate": rate(state.step), "gradient_norm": optax.tree.norm(grads)}
        parts |= {f"gradient_norm/{name}": optax.tree.norm(part) for name, part in grads.items()}
        if backbone_rate not in (0.0, 1.0):
            parts["learning_rate/backbone"] = backbone_rate * rate(state.step)
        new = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        if decay:
            average = optim.moving_average(state.average, new.variables, decay, state.step)
            new = new.replace(average=average)
        return new, parts

    return train_step


def jit_step(system: System, state: TrainState) -> Any:
    """The training step, not yet compiled; it takes the state's memory for the new one, which lies alike.

    `state` may be abstract (`system.abstract_state`).
    """
    out = (jax.tree.map(lambda x: x.sharding, state), sharding.replicated(system.mesh))
    return jax.jit(make_train_step(system), donate_argnums=0, out_shardings=out)


def compile_step(system: System, state: TrainState, batch: dict[str, jax.Array]) -> jax.stages.Compiled:
    """The training step compiled for these shapes and places."""
    return jit_step(system, state).lower(state, batch).compile()


def check_memory(compiled: Any, config: ConfigDict, mesh: Mesh) -> int:
    """Bytes that a compiled step needs on each device.

    Raises:
        UserError: more than the device has.
    """
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 0
    needed = (
        analysis.argument_size_in_bytes
        + analysis.temp_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
    )
    device = mesh.devices.flat[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        have = stats["bytes_limit"]
    else:  # host devices share the machine's memory
        have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(mesh.local_devices)
    if needed > have:
        raise UserError(
            f"config.data.crop={tuple(config.data.crop)} with config.train.batch_size="
            f"{config.train.batch_size}: one step needs {needed / 2**30:.1f} GiB on each device, which has "
            f"{have / 2**30:.1f}; use a smaller crop or batch, or raise config.train.accumulate"
        )
    return needed
