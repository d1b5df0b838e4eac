"""Memory and time of the cross-entropy and its gradient, in blocks of rows and with all logits at the pixels.

    python benchmarks/loss.py --batch 16 --classes 171 --side 513          memory alone, nothing is computed
    python benchmarks/loss.py --batch 2 --classes 171 --side 513 --repeat 10

The logits are float32 at output stride 4. Memory is the compiled program's temporary memory; of time the
two take turns, and the median counts. Prints one JSON line.
"""

import json
import statistics
import time
from collections.abc import Callable
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import report
from absl import flags

from hfgd_jax import geometry
from hfgd_jax.losses import blocks, cross_entropy
from hfgd_jax.runtime import shell

_BATCH = flags.DEFINE_integer("batch", 16, "Images.", lower_bound=1)
_CLASSES = flags.DEFINE_integer("classes", 171, "Classes.", lower_bound=2)
_SIDE = flags.DEFINE_integer("side", 513, "Height and width of a crop.", lower_bound=32)
_STRIDE = flags.DEFINE_integer("stride", 4, "Output stride of the logits.", lower_bound=2)
_REPEAT = flags.DEFINE_integer("repeat", 0, "Timed calls of each; 0: memory alone.", lower_bound=0)
_NOTE = flags.DEFINE_string("note", "", "What else the machine did, for the result.")


def compiled(values: int, *abstract: jax.ShapeDtypeStruct) -> jax.stages.Compiled:
    """Value and gradient of the loss, in blocks of so many logits at the pixels."""
    loss = lambda logits, labels: cross_entropy(logits, labels, geometry="align_corners")  # noqa: E731
    with mock.patch.object(blocks, "BLOCK", values):
        return jax.jit(jax.value_and_grad(loss)).lower(*abstract).compile()


def seconds(call: Callable[[], object]) -> float:
    """The time of a call and its results."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def main(_: list[str]) -> None:
    """Compiles both and times them."""
    size = (_SIDE.value, _SIDE.value)
    low = geometry.feature_size(geometry.grid_size(size, "align_corners"), _STRIDE.value, "align_corners")
    shape, label_shape = (_BATCH.value, *low, _CLASSES.value), (_BATCH.value, *size)
    abstract = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(label_shape, jnp.uint8)
    both = {
        name: compiled(values, *abstract) for name, values in (("blocks", blocks.BLOCK), ("whole", 2**62))
    }
    memory = {name: program.memory_analysis().temp_size_in_bytes for name, program in both.items()}
    result = {
        **report.machine(1),
        "batch": list(shape),
        "pixels": list(size),
        "temporary_gib": {name: round(size / 2**30, 3) for name, size in memory.items()},
        "memory_ratio": round(memory["whole"] / memory["blocks"], 2),
    }
    if _REPEAT.value:
        rng = np.random.default_rng(0)
        logits = jnp.asarray(rng.normal(size=shape), jnp.float32)
        labels = jnp.asarray(rng.integers(0, _CLASSES.value, label_shape), jnp.uint8)
        found = {name: float(program(logits, labels)[0]) for name, program in both.items()}
        times: dict[str, list[float]] = {name: [] for name in both}
        for _ in range(_REPEAT.value):
            for name, program in both.items():
                times[name].append(seconds(lambda program=program: program(logits, labels)))
        result["loss"] = found
        result["seconds"] = {name: round(statistics.median(values), 4) for name, values in times.items()}
        ratios = [b / w for b, w in zip(times["blocks"], times["whole"], strict=True)]
        result["time_ratio"] = [round(x, 3) for x in (min(ratios), statistics.median(ratios), max(ratios))]
    print(json.dumps(result | ({"note": _NOTE.value} if _NOTE.value else {})))


if __name__ == "__main__":
    shell.run(main)
