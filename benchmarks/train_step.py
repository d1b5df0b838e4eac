"""Times a training step without data and logging: random batches, the median of many steps.

    python benchmarks/train_step.py --config configs/demo.py --steps 20

Prints one JSON line: machine, versions, config, compile seconds, median step seconds, images/s, GiB.
"""

import json
import statistics
import time

import jax
import numpy as np
import report
from absl import flags
from ml_collections import config_flags

from hfgd_jax.runs.system import build, initial_state
from hfgd_jax.runtime import sharding, shell
from hfgd_jax.training.step import check_memory, compile_step

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with arguments after a colon.")
_STEPS = flags.DEFINE_integer("steps", 20, "Timed steps.", lower_bound=1)
flags.mark_flags_as_required(["config"])


def main(_: list[str]) -> None:
    """Times the compiled step of the config."""
    config = _CONFIG.value
    config.loss.balance = "none"  # no data here to count classes in
    system = build(config)
    state, _ = initial_state(system)
    shape = (config.train.batch_size, *config.data.crop)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (*shape, 3)).astype(np.uint8),
        "label": rng.integers(0, config.data.num_classes, shape).astype(np.uint8),
    }
    batch = sharding.global_batch(system.mesh, batch)
    start = time.perf_counter()
    step = compile_step(system, state, batch)
    compiled = time.perf_counter() - start
    needed = check_memory(step, config, system.mesh)
    seconds = []
    for number in range(_STEPS.value + 2):
        start = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        if number >= 2:
            seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    result = {
        **report.circumstances(system),
        "compile_seconds": round(compiled, 2),
        "step_seconds": {"median": median, "min": min(seconds), "max": max(seconds), "steps": len(seconds)},
        "images_per_second": config.train.batch_size / median,
        "gib_per_device": needed / 2**30,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    shell.run(main)
