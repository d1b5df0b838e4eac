"""One of several processes in `test_processes.py`: restores, scores, trains, and writes what it has seen."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from hfgd_jax import config as configuration
from hfgd_jax import distributed, sharding, train
from hfgd_jax.checkpoints import Checkpoints
from hfgd_jax.data import pipeline
from hfgd_jax.evaluate import Evaluator
from hfgd_jax.models import build_model
from hfgd_jax.system import abstract_state, build, initial_state, open_data


def flat(tree):
    """Leaves by name, as NumPy arrays."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {sharding.leaf_name(path): np.asarray(x) for path, x in leaves}


def restored(config, workdir, step):
    """A system, and the state of a checkpoint on its mesh."""
    system = build(config)
    target, saved = abstract_state(system), Checkpoints(workdir, read_only=True)
    model, training = saved.restore(step, target.model, target.training)
    saved.close()
    return system, {"model": model, "training": training}


def scored(config, system, model):
    """The confusion matrix of the evaluation split."""
    evaluator = Evaluator(system.model, config, system.mesh)
    return evaluator.score(model, open_data(config, config.data.eval_split), system.mean_pixel).matrix


def trained(config):
    """Losses of each step, and the parameters and statistics after the last, whole.

    Computed in float64: in float32 sums in another order flip a ReLU here and there, and two runs part.
    """
    with jax.enable_x64(True):
        system = build(config)
        model = build_model(config.model, config.data.num_classes, jnp.float64)
        system = dataclasses.replace(system, model=model)
        state = initial_state(system)[0]
        state = state.replace(batch_stats=jax.tree.map(lambda x: x.astype(jnp.float64), state.batch_stats))
        layout = jax.tree.map(lambda x: x.sharding, state)
        step = jax.jit(
            train.make_train_step(system), out_shardings=(layout, sharding.replicated(system.mesh))
        )
        index, count = sharding.place(system.mesh)
        split, seed = open_data(config, config.data.train_split), config.train.seed
        shared = {"batch_size": config.train.batch_size, "seed": seed, "mean_pixel": system.mean_pixel}
        with pipeline.train_batches(
            split, config.data, **shared, process_index=index, process_count=count
        ) as batches:
            losses = []
            for _ in range(config.train.steps):
                local = next(batches)
                batch = sharding.global_batch(system.mesh, {key: local[key] for key in ("image", "label")})
                if not losses:
                    step = step.lower(state, batch).compile()
                    distributed.meet("compiled")
                state, metrics = step(state, batch)
                losses.append(float(metrics["loss"]))
        return np.array(losses), flat(sharding.local_copy(system.mesh, state.model))


def main(config_file, workdir, step, out, mesh):
    """Does all of it on the mesh, and writes it to `out/PROCESS_*.npz`."""
    distributed.start()
    config = configuration.from_json(Path(config_file).read_text())
    config.mesh.update(json.loads(mesh))
    system, state = restored(config, workdir, int(step))
    write = lambda name, **arrays: np.savez(f"{out}/{jax.process_index()}_{name}.npz", **arrays)  # noqa: E731
    write("state", **flat(sharding.local_copy(system.mesh, state)))
    write("score", matrix=scored(config, system, state["model"]))
    losses, model = trained(config)
    write("losses", losses=losses)
    write("model", **model)


if __name__ == "__main__":
    main(*flags.FLAGS(sys.argv)[1:])
