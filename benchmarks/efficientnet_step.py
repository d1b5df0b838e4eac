"""Times a training step of EfficientNet-Lite0 here and in timm; needs torch and timm.

    taskset -c 0 python benchmarks/efficientnet_step.py --steps 15 --note "nothing else ran"

A step is the forward pass in training, the sum over levels 4, 8, 16 and 32 of the mean square, its gradients
and plain SGD, from the same weights and images, float32. timm's `tf_efficientnet_lite0` runs as
`features_only`, channels-last and eager, on as many threads as this process may use. The two take turns.
Prints one JSON line: machine, versions, first losses, and of each the median seconds of a step, by the clock
and of the processor (which other processes disturb less), with both ratios (ours to timm's).
"""

import functools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import report
from absl import flags
from safetensors.numpy import save_file

from hfgd_jax.errors import UserError
from hfgd_jax.models.backbones import BACKBONES
from hfgd_jax.runtime import shell
from hfgd_jax.weights import pretrained

_STEPS = flags.DEFINE_integer("steps", 15, "Timed steps of each, after two that are not.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 8, "Images.", lower_bound=2)
_SIZE = flags.DEFINE_list("size", ["193", "257"], "Height and width.")
_NOTE = flags.DEFINE_string("note", "", "What else the machine did, for the result.")

NAME, SOURCE, LEARNING_RATE = "efficientnet_lite0", "tf_efficientnet_lite0", 0.01
Step = Callable[[], float]  # takes a step and gives its loss


def timm_step(images: np.ndarray) -> tuple[Step, dict[str, np.ndarray]]:
    """timm's step, and the weights that it starts from, by timm's names.

    Raises:
        UserError: torch or timm is not installed.
    """
    try:
        import timm
        import torch
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; pip install torch timm") from None
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    model = timm.create_model(SOURCE, features_only=True, out_indices=(1, 2, 3, 4))
    start = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    model = model.train().to(memory_format=torch.channels_last)
    x = torch.from_numpy(images.transpose(0, 3, 1, 2)).contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)

    def step() -> float:
        optimizer.zero_grad()
        loss = sum((level**2).mean() for level in model(x))
        loss.backward()
        optimizer.step()
        return loss.item()

    return step, start


def our_step(images: np.ndarray, start: dict[str, np.ndarray]) -> tuple[Step, float]:
    """Our step from the same weights, and the seconds that it took to compile."""
    network, optimizer = BACKBONES[NAME].build(), optax.sgd(LEARNING_RATE)
    shapes = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, False), images[:1])
    empty = {
        collection: {"backbone": jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), tree)}
        for collection, tree in shapes.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(start, path)
        filled, _ = pretrained.load_backbone(empty, NAME, path)
    params, stats = (jax.device_put(filled[kind]["backbone"]) for kind in ("params", "batch_stats"))

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def take(params, stats, state, x):
        def loss(params):
            variables = {"params": params, "batch_stats": stats}
            levels, updates = network.apply(variables, x, True, mutable=["batch_stats"])
            return sum(jnp.mean(level**2) for level in levels.values()), updates["batch_stats"]

        (value, new_stats), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        changes, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, changes), new_stats, state, value

    values, x = (params, stats, optimizer.init(params)), jax.device_put(images)
    begun = time.perf_counter()
    compiled = take.lower(*values, x).compile()
    seconds = time.perf_counter() - begun

    def step() -> float:
        nonlocal values
        *values, loss = compiled(*values, x)
        return float(loss)

    return step, seconds


def timed(step: Step) -> tuple[float, float, float]:
    """Seconds by the clock, seconds of the processor, and the loss."""
    clock, processor = time.perf_counter(), time.process_time()
    loss = step()
    return time.perf_counter() - clock, time.process_time() - processor, loss


def main(_: list[str]) -> None:
    """Times both steps in turn."""
    height, width = map(int, _SIZE.value)
    images = np.random.default_rng(0).standard_normal((_BATCH.value, height, width, 3)).astype(np.float32)
    timm, start = timm_step(images)
    ours, compile_seconds = our_step(images, start)
    rounds = [(timed(ours), timed(timm)) for _ in range(_STEPS.value + 2)]
    medians = {
        who: [statistics.median(turn[i][kind] for turn in rounds[2:]) for kind in (0, 1)]
        for i, who in enumerate(("ours", "timm"))
    }
    import timm as library
    import torch

    result = report.machine(1)
    result["versions"] |= {"torch": torch.__version__, "timm": library.__version__}
    result |= {
        "network": NAME,
        "batch": [_BATCH.value, height, width],
        "threads": len(os.sched_getaffinity(0)),
        "steps": _STEPS.value,
        "compile_seconds": round(compile_seconds, 1),
        "first_loss": {who: rounds[0][i][2] for i, who in enumerate(("ours", "timm"))},
        "step_seconds": {who: round(clock, 4) for who, (clock, _) in medians.items()},
        "processor_seconds": {who: round(processor, 4) for who, (_, processor) in medians.items()},
        "ratio": round(medians["ours"][0] / medians["timm"][0], 3),
        "processor_ratio": round(medians["ours"][1] / medians["timm"][1], 3),
        "note": _NOTE.value,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    shell.run(main)
