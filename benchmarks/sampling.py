"""Times how logits are sampled at the pixels of a label: from two neighbours, and by a product with a matrix.

    python benchmarks/sampling.py --repeat 15

The first is what CPUs and GPUs do, the second what TPUs do (`inference/views.py`). They take turns; a time is
the processor's, which other processes disturb less. Prints a JSON line for each size.
"""

import functools
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import report
from absl import flags
from jaxtyping import Array

from hfgd_jax.inference import views
from hfgd_jax.runtime import shell

_REPEAT = flags.DEFINE_integer("repeat", 15, "Timed calls of each.", lower_bound=1)
_NOTE = flags.DEFINE_string("note", "", "What else the machine did, for the result.")
# Height and width of the logits and of the label, and classes.
SIZES = [
    ((41, 49), (161, 193), 11),
    ((129, 129), (513, 513), 59),
    ((129, 129), (513, 513), 171),
    ((257, 513), (1025, 2049), 19),
]


def at_pixels(function: views.OfRows, low: tuple[int, int], high: tuple[int, int], logits: Array) -> Array:
    """Samples along both axes, by one of the two functions."""
    for axis in (0, 1):
        logits = function(logits, jnp.linspace(0, low[axis] - 1, high[axis])[None], axis)
    return logits


def main(_: list[str]) -> None:
    """Times all sizes."""
    functions = {"gather": views.sample_by_gather, "product": views.sample_by_product}
    for low, high, classes in SIZES:
        logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, *low, classes)), jnp.float32)
        calls = {name: jax.jit(functools.partial(at_pixels, f, low, high)) for name, f in functions.items()}
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for number in range(_REPEAT.value + 1):
            for name, call in calls.items():
                start = time.process_time()
                jax.block_until_ready(call(logits))
                if number:  # the first compiles
                    seconds[name].append(time.process_time() - start)
        medians = {name: round(statistics.median(values), 5) for name, values in seconds.items()}
        ratio = round(medians["product"] / medians["gather"], 2)
        result = {**report.machine(1), "logits": low, "pixels": high, "classes": classes}
        result |= {"processor_seconds": medians, "ratio": ratio}
        print(json.dumps(result | ({"note": _NOTE.value} if _NOTE.value else {})), flush=True)


if __name__ == "__main__":
    shell.run(main)
