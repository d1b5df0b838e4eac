"""One of several processes in `test_processes.py`: restores, scores, trains, and writes what it has seen."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from absl import flags

from hfgd_jax import config as configuration
from hfgd_jax import distributed, sharding, train
from hfgd_jax.checkpoints import Checkpoints
from hfgd_jax.evaluate import Evaluator
from hfgd_jax.system import abstract_state, build, open_data


def restored(config, workdir, step):
    """The state of a checkpoint on the mesh of the config, and the system."""
    system = build(config)
    target = abstract_state(system)
    saved = Checkpoints(workdir, read_only=True)
    model, training = saved.restore(step, target.model, target.training)
    saved.close()
    return system, model, training


def flat(tree):
    """Leaves by name, as NumPy arrays."""
    return {
        sharding.leaf_name(path): np.asarray(x) for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def scored(config, system, model):
    """The confusion matrix of the evaluation split."""
    evaluator = Evaluator(system.model, config, system.mesh)
    return evaluator.score(model, open_data(config, config.data.eval_split), system.mean_pixel).matrix


def main(config_file, workdir, step, out, mesh):
    """Restores `step` of `workdir`, scores it, and trains the same config anew in `out/run`."""
    distributed.start()
    config = configuration.from_json(Path(config_file).read_text())
    config.mesh.update(json.loads(mesh))
    system, model, training = restored(config, workdir, int(step))
    state = flat(sharding.local_copy(system.mesh, {"model": model, "training": training}))
    np.savez(f"{out}/state_{jax.process_index()}.npz", **state)
    matrix = scored(config, system, model)
    np.save(f"{out}/matrix_{jax.process_index()}.npy", matrix)
    assert train.run(config, f"{out}/run") == 0


if __name__ == "__main__":
    main(*flags.FLAGS(sys.argv)[1:])
