"""One of several processes in `test_processes.py`: restores, scores, trains, and writes what it has seen."""

import contextlib
import json
import sys
from pathlib import Path

import jax
import numpy as np
from absl import flags
from small_model import light_backbones

from hfgd_jax import config as configuration
from hfgd_jax.data import pipeline
from hfgd_jax.evaluation.evaluator import Evaluator
from hfgd_jax.runs.checkpoints import Checkpoints
from hfgd_jax.runs.system import abstract_state, build, initial_state, open_data
from hfgd_jax.runtime import collectives, processes, sharding
from hfgd_jax.training.step import compile_step


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
    """Losses of each step, and the parameters and statistics before the first and after the last, whole."""
    system = build(config)
    state = initial_state(system)[0]
    before, losses = flat(sharding.local_copy(system.mesh, state.model)), []
    with batches_of(config, system) as batches:
        batch = next(batches)
        step = compile_step(system, state, batch)
        collectives.barrier("compiled")
        for _ in range(config.train.steps):
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
            batch = next(batches)
    return np.array(losses), before, flat(sharding.local_copy(system.mesh, state.model))


@contextlib.contextmanager
def batches_of(config, system):
    """Yields an iterator of global batches, of which each process reads its part."""
    index, count = sharding.process_share(system.mesh)
    with pipeline.train_batches(
        open_data(config, config.data.train_split),
        config.data,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        mean_pixel=system.mean_pixel,
        process_index=index,
        process_count=count,
    ) as batches:
        yield (sharding.global_batch(system.mesh, {k: x[k] for k in ("image", "label")}) for x in batches)


def main(config_file, workdir, step, out, mesh):
    """Does all of it on the mesh, and writes it to `out/PROCESS_*.npz`."""
    processes.start()
    config = configuration.from_json(Path(config_file).read_text())
    config.mesh.update(json.loads(mesh))
    system, state = restored(config, workdir, int(step))
    write = lambda name, **arrays: np.savez(f"{out}/{jax.process_index()}_{name}.npz", **arrays)  # noqa: E731
    write("state", **flat(sharding.local_copy(system.mesh, state)))
    write("score", matrix=scored(config, system, state["model"]))
    losses, _, model = trained(config)
    write("losses", losses=losses)
    write("model", **model)


if __name__ == "__main__":
    processes.define_flags()
    with light_backbones():
        main(*flags.FLAGS(sys.argv)[1:])
