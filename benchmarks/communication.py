"""Counts what a training step sends between devices and holds on each; nothing is allocated or run.

    python benchmarks/communication.py --config configs/paper.py:table9/hfgd_os4 --config.mesh.fsdp=2

The step is compiled for `--devices` devices of this machine's CPU (8), with an accelerator's branches where a
layer has some of its own for CPUs, and its collectives are read from the compiled program. Prints one JSON
line: machine, versions, config, mesh, GiB of each device, FLOPs as XLA counts them, multiply-accumulates of
an image's inference, collectives (kind, bytes of the result, devices of a group, times in a step) and their
sums by kind.
"""

import collections
import json
import time
from collections.abc import Callable
from typing import Any

import hlo
import jax
import report
from absl import flags
from ml_collections import config_flags

from hfgd_jax.runs.system import build
from hfgd_jax.runtime import shell
from hfgd_jax.tools import lower, macs
from hfgd_jax.training.step import jit_step

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with arguments after a colon.")
_DEVICES = flags.DEFINE_integer("devices", 8, "Devices to compile for.", lower_bound=1)
flags.mark_flags_as_required(["config"])

# The code for this machine's processor is never run: it is compiled quickly. Collectives stand before it.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def accelerators_branch(*operands: Any, default: Callable | None = None, **branches: Callable) -> Any:
    """`jax.lax.platform_dependent` as a TPU sees it."""
    return branches.get("tpu", default)(*operands)


def main(_: list[str]) -> None:
    """Compiles the step and prints what it sends."""
    jax.lax.platform_dependent = accelerators_branch
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", _DEVICES.value)
    config = _CONFIG.value
    config.loss.balance = "none"  # no data here to count classes in
    system, start = build(config), time.perf_counter()
    state, batch = lower.train_arguments(system)
    compiled = jit_step(system, state).lower(state, batch).compile(compiler_options=QUICK)
    seconds, memory = time.perf_counter() - start, compiled.memory_analysis()
    found = hlo.collectives(compiled.as_text(), system.mesh.size)
    alike = collections.Counter()
    for item in found:
        alike[item.kind, item.size, item.group] += item.times
    result = {
        **report.circumstances(system),
        "mesh": dict(system.mesh.shape),
        "compile_seconds": round(seconds, 1),
        "gib_per_device": {
            "state_and_batch": round(memory.argument_size_in_bytes / 2**30, 3),
            "temporary": round(memory.temp_size_in_bytes / 2**30, 3),
        },
        "flops": float(compiled.cost_analysis()["flops"]),
        "macs_per_image": sum(macs.inference_macs(config, tuple(config.data.crop))[0].values()),
        "collectives": [[*key, times] for key, times in sorted(alike.items())],
        "by_kind": {
            kind: {name: round(value, 3) for name, value in row.items()}
            for kind, row in sorted(hlo.by_kind(found).items())
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    shell.run(main)
