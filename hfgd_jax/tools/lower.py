"""Lowers a config's steps for accelerators that are not here: finds operations that they lack.

    python -m hfgd_jax.tools.lower --config configs/paper.py:table9/hfgd_os4
    python -m hfgd_jax.tools.lower --config configs/paper.py:table9/hfgd_os4 --devices 64 --config.mesh.fsdp=8

The training step, and what turns a batch of images into masks (with `config.eval`'s scales, mirror images
and windows), are traced and lowered to StableHLO for each platform, on a mesh of as many devices as
`--devices` says. Nothing is allocated, computed or compiled: an operation without a lowering is found; a
program that needs more memory than a chip has, or that a platform's own compiler refuses, is not.
"""

import re
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags
from jax.extend import core
from ml_collections import ConfigDict, config_flags

from hfgd_jax.errors import UserError
from hfgd_jax.geometry import grid_size
from hfgd_jax.inference.views import Inference
from hfgd_jax.runs.system import System, abstract_state, build
from hfgd_jax.runtime import sharding, shell
from hfgd_jax.training.step import jit_step

PLATFORMS = ("tpu", "cuda", "rocm", "cpu")
_MISSING = re.compile(r"primitive '([^']+)' not found")


class Result(NamedTuple):
    """The result of lowering one step for one platform.

    Attributes:
        error: "" where it was lowered; else the operation without a lowering, and where in the model it is.
        size: bytes of the StableHLO text.
        lines: of it.
        calls: targets of its custom calls: what StableHLO itself does not define.
        seconds: that lowering took.
    """

    error: str
    size: int = 0
    lines: int = 0
    calls: tuple[str, ...] = ()
    seconds: float = 0.0


def train_arguments(system: System) -> tuple[Any, dict[str, jax.ShapeDtypeStruct]]:
    """The state and the batch that the training step takes, as `ShapeDtypeStruct`s with their shardings."""
    config, rows = system.config, sharding.batch_sharding(system.mesh)
    shape = (config.train.batch_size, *config.data.crop)
    batch = {
        "image": jax.ShapeDtypeStruct((*shape, 3), jnp.uint8, sharding=rows),
        "label": jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=rows),
    }
    return abstract_state(system), batch


def steps(config: ConfigDict, devices: int = 0) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """The functions that a run compiles, by name, and what they take.

    Args:
        config: of a run. Where its class weights come from the data they are taken as ones.
        devices: of the mesh; 0: those that are here.

    Returns:
        `train step`, and `masks`: those of an evaluation's batch of images of the crop's size, at the
        label's pixels.

    Raises:
        UserError: the config is not valid, or its batch does not divide over the mesh.
    """
    config = config.copy_and_resolve_references()
    if config.loss.balance != "none":
        config.loss.update({"balance": "none", "class_weights": (1.0,) * config.data.num_classes})
    system = build(config, sharding.abstract_mesh(config.mesh, devices or jax.device_count()))
    name = "config.train.batch_size / config.train.accumulate"
    sharding.check_batch_size(name, config.train.batch_size // config.train.accumulate, system.mesh)
    state, batch = train_arguments(system)

    seen, rows = Inference(system.model, config), sharding.batch_sharding(system.mesh)
    count = sharding.round_up_batch_size(config.eval.batch_size, system.mesh)
    crop = tuple(config.data.crop)
    sizes = jax.ShapeDtypeStruct((count, 2), jnp.int32, sharding=rows)
    views = []
    for scale in seen.scales:
        canvas = grid_size(tuple(max(1, round(side * scale)) for side in crop), seen.geometry)
        image = jax.ShapeDtypeStruct((count, *canvas, 3), jnp.uint8, sharding=rows)
        views.append({"image": image, "image_size": sizes})
    masks = jax.jit(lambda variables, views, size: seen.masks(variables, views, size, crop))
    return {
        "train step": (jit_step(system, state), (state, batch)),
        "masks": (masks, (state.model, tuple(views), sizes)),
    }


def attempt(function: Any, arguments: Sequence[Any], platform: str) -> Result:
    """Lowers a jitted function for a platform; nothing is compiled.

    Args:
        function: of `jax.jit`.
        arguments: arrays, or what has their shapes.
        platform: one of `PLATFORMS`.
    """
    start = time.perf_counter()
    traced = function.trace(*arguments)
    try:
        text = traced.lower(lowering_platforms=(platform,)).as_text()
    except NotImplementedError as error:
        found = _MISSING.search(str(error))
        where = sorted(set(_scopes(traced.jaxpr.jaxpr, found[1], ()))) if found else ()
        message = f"no lowering of {found[1]!r}" if found else " ".join(str(error).split())
        return Result(message + (f" in {', '.join(where)}" if where else ""))
    calls = tuple(sorted(set(re.findall(r"stablehlo\.custom_call @([\w.]+)", text))))
    return Result("", len(text.encode()), text.count("\n"), calls, time.perf_counter() - start)


def _scopes(jaxpr: core.Jaxpr, name: str, outer: tuple[str, ...]) -> Iterator[str]:
    """Where a primitive stands: paths of flax modules."""
    for eqn in jaxpr.eqns:
        scope = (*outer, *filter(None, [str(eqn.source_info.name_stack)]))
        if eqn.primitive.name == name:
            yield "/".join(scope) or "the function itself"
        for inner in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda x: isinstance(x, core.ClosedJaxpr | core.Jaxpr)
        ):
            if isinstance(inner, core.ClosedJaxpr | core.Jaxpr):
                yield from _scopes(getattr(inner, "jaxpr", inner), name, scope)


def line(step: str, platform: str, result: Result) -> str:
    """The line that is printed for a result."""
    if result.error:
        return f"{step:<12} {platform:<5} FAILED  {result.error}"
    calls = f"; custom calls: {', '.join(result.calls)}" if result.calls else ""
    size = f"{result.size / 2**20:.2f} MiB, {result.lines} lines"
    return f"{step:<12} {platform:<5} OK      {size}, {result.seconds:.1f} s{calls}"


def define_flags() -> None:
    """The command's flags."""
    config_flags.DEFINE_config_file("config", None, "Config file, with arguments after a colon.")
    flags.DEFINE_list("platforms", "tpu,cuda", f"Of {', '.join(PLATFORMS)}, with commas.")
    flags.DEFINE_integer("devices", 0, "Devices of the mesh; 0: those that are here.", lower_bound=0)
    flags.mark_flag_as_required("config")


def main(_: Sequence[str]) -> int:
    """Prints a line a step and platform; returns 1 where one was not lowered, else 0."""
    values, failed = flags.FLAGS, False
    platforms = [name.strip() for name in values.platforms]
    for name in platforms:
        if name not in PLATFORMS:
            hint = "; NVIDIA's is cuda" if name == "gpu" else ""
            raise UserError(f"--platforms={name}: unknown; one of {', '.join(PLATFORMS)}{hint}")
    found = steps(values.config, values.devices)
    mesh = sharding.abstract_mesh(values.config.mesh, values.devices or jax.device_count())
    print(f"mesh {dict(mesh.shape)}, batch {values.config.train.batch_size}, crop {values.config.data.crop}")
    for step, (function, arguments) in found.items():
        for platform in platforms:
            result = attempt(function, arguments, platform)
            failed |= bool(result.error)
            print(line(step, platform, result), flush=True)
    return int(failed)


if __name__ == "__main__":
    define_flags()
    shell.run(main)
