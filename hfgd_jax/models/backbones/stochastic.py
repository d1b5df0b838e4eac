"""Stochastic depth (Huang et al., 2016): in training, residual branches are left out at random."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PRNGKeyArray, UInt32

RNG = "stochastic"


class Drops(NamedTuple):
    """Rates and keys of stochastic depth, of one block or, with a leading axis, of several."""

    rate: Float[np.ndarray | Array, "*blocks"]
    key: Key[Array, "*blocks"] | UInt32[Array, "*blocks 2"]


def drop_path(
    x: Float[Array, "b ..."], rate: float | np.floating | Float[Array, ""], key: PRNGKeyArray
) -> Float[Array, "b ..."]:
    """Sets each sample to zero with probability `rate`, and divides the others by `1 - rate`.

    Args:
        x: a residual branch.
        rate: in [0, 1); may be traced. 0 is the identity.
        key: of the draws, one a sample.

    Returns:
        An array of x's shape and dtype, whose expectation is x.
    """
    keep = 1.0 - jnp.asarray(rate, jnp.float32)
    kept = jax.random.bernoulli(key, keep, (x.shape[0],) + (1,) * (x.ndim - 1))
    return (x.astype(jnp.float32) * (kept / keep)).astype(x.dtype)


def drop_path_rates(total_blocks: int, rate: float) -> tuple[float, ...]:
    """The rate of each block of a network, linear from 0 at the first to `rate` at the last."""
    return tuple(rate * i / max(total_blocks - 1, 1) for i in range(total_blocks))


def draw(parent: nn.Module, rates: tuple[float, ...], train: bool) -> Drops | None:
    """What the blocks of a stage of `parent` need, one element a block.

    Takes one key from `parent`'s rng collection `"stochastic"`, and only where there is something to drop:
    None at inference and where all rates are 0.
    """
    if not (train and any(rates)):
        return None
    keys = jax.random.split(parent.make_rng(RNG), len(rates))
    return Drops(np.asarray(rates, np.float32), keys)
