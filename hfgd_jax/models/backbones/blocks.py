"""A stage's repeated blocks, one after another or as one compiled loop."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def run_blocks(
    parent: nn.Module,
    makers: Sequence[Callable[..., nn.Module]],
    names: Sequence[str],
    x: Float[Array, "b h w c"],
    inputs: Any = None,
    *,
    scan: bool = False,
    remat: bool = False,
) -> Float[Array, "b h w c"]:
    """The blocks `names` of `parent`, to be called within its compact `__call__`.

    With `scan`, blocks that are alike are compiled once: their parameters are stacked within the call, and
    `jax.lax.scan` goes over them. Outputs, gradients and the parameters' tree are those of the loop.

    Args:
        parent: the module that owns the blocks.
        makers: functions of a module's `name=` or `parent=`, usually `partial(Block, ...)`, that make the
            blocks of one repetition: block i is made by `makers[i % len(makers)]`. The blocks are called
            as `block(x, input)`, keep x's shape and dtype, hold nothing but `params`, and draw no rng.
        names: of all blocks, in order.
        x: the stage's input.
        inputs: arrays with a leading axis of `len(names)`, in any tree: block i gets their i-th element.
            None: every block gets None.
        scan: see above. Without effect where nothing is repeated, and while parameters are created.
        remat: the backward pass keeps a block's input alone, and computes the rest of it again.
    """
    repeats = len(names) // len(makers)
    done = 0
    if scan and repeats > 1 and not parent.is_initializing():
        done = repeats * len(makers)
        x = _scan(parent, makers, names[:done], x, jax.tree.map(lambda v: v[:done], inputs), remat)
    call = nn.remat(_call) if remat else _call
    for i in range(done, len(names)):
        block = makers[i % len(makers)](name=names[i])
        x = call(block, x, jax.tree.map(lambda v, i=i: v[i], inputs))
    return x


def _call(block: nn.Module, x: Array, value: Any) -> Array:
    return block(x, value)


def _scan(
    parent: nn.Module,
    makers: Sequence[Callable[..., nn.Module]],
    names: Sequence[str],
    x: Float[Array, "b h w c"],
    inputs: Any,
    remat: bool,
) -> Float[Array, "b h w c"]:
    params, period = parent.variables["params"], len(makers)
    blocks = [make(parent=None) for make in makers]
    weights = [
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[name] for name in names[i::period]))
        for i in range(period)
    ]
    given = [jax.tree.map(lambda v, i=i: v[i::period], inputs) for i in range(period)]

    def repetition(x: Array, step: tuple) -> tuple[Array, None]:
        for block, weight, value in zip(blocks, *step, strict=True):
            x = block.apply({"params": weight}, x, value)
        return x, None

    return jax.lax.scan(jax.checkpoint(repetition) if remat else repetition, x, (weights, given))[0]
