"""Times the compilation of a training step; nothing is allocated or run.

    python benchmarks/compile_time.py --config configs/paper.py:table10/hfgd --config.train.batch_size=2

With `--config.model.backbone.scan_blocks=True` the backbone's repeated blocks compile once. Prints one JSON
line: machine, versions, config, seconds of tracing, lowering and compiling, size of the program, GiB.
"""

import itertools
import json
import time

import report
from absl import flags
from ml_collections import config_flags

from hfgd_jax.runs.system import build
from hfgd_jax.runtime import shell
from hfgd_jax.tools import lower
from hfgd_jax.training.step import jit_step

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with arguments after a colon.")
flags.mark_flags_as_required(["config"])


def main(_: list[str]) -> None:
    """Times what stands between a config and its first step."""
    config = _CONFIG.value
    config.loss.balance = "none"  # no data here to count classes in
    system = build(config)
    state, batch = lower.train_arguments(system)
    times = [time.perf_counter()]
    traced = jit_step(system, state).trace(state, batch)
    times.append(time.perf_counter())
    lowered = traced.lower()
    times.append(time.perf_counter())
    compiled = lowered.compile()
    times.append(time.perf_counter())
    spans = [round(after - before, 2) for before, after in itertools.pairwise(times)]
    memory = compiled.memory_analysis()
    result = {
        **report.circumstances(system),
        "seconds": dict(zip(("trace", "lower", "compile"), spans, strict=True)),
        "program_lines": lowered.as_text().count("\n"),
        "temporary_gib": round(memory.temp_size_in_bytes / 2**30, 2) if memory else None,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    shell.run(main)
