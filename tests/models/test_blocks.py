from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hfgd_jax.models.backbones.blocks import run_blocks
from hfgd_jax.models.backbones.stochastic import draw, drop_path


class Block(nn.Module):
    """A residual matrix product, of one of two kinds."""

    gain: float

    @nn.compact
    def __call__(self, x, drops):
        y = self.gain * jnp.tanh(nn.Dense(x.shape[-1], name="dense")(x))
        return x + (y if drops is None else drop_path(y, drops.rate, drops.key))


class Stage(nn.Module):
    depth: int
    kinds: tuple[float, ...]
    rate: float = 0.0
    scan: bool = False

    @nn.compact
    def __call__(self, x, train: Any = False):
        makers = [partial(Block, gain) for gain in self.kinds]
        names = [f"block_{i}" for i in range(self.depth)]
        drops = draw(self, tuple(self.rate * i for i in range(self.depth)), train)
        return run_blocks(self, makers, names, x, drops, scan=self.scan)


def same(got, want):
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def scans(stage, variables, x):
    return str(jax.make_jaxpr(lambda x: stage.apply(variables, x))(x)).count("scan[")


@pytest.mark.parametrize("depth, kinds", [(3, (1.0,)), (4, (1.0, 2.0)), (5, (1.0, 2.0))])
def test_a_scan_gives_the_loop_s_outputs_and_gradients(depth, kinds):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((6, 2, 2, 3)), jnp.float32)
    loop, scan = Stage(depth, kinds, 0.15), Stage(depth, kinds, 0.15, scan=True)
    variables = loop.init(jax.random.key(0), x)
    assert jax.tree.structure(variables) == jax.tree.structure(scan.init(jax.random.key(0), x))
    assert list(variables["params"]) == [f"block_{i}" for i in range(depth)]
    assert scans(scan, variables, x) == 1
    assert scans(loop, variables, x) == 0

    def loss(variables, stage):
        y = stage.apply(variables, x, True, rngs={"stochastic": jax.random.key(3)})
        return (y**2).sum(), y

    (_, want), want_gradient = jax.value_and_grad(loss, has_aux=True)(variables, loop)
    (_, got), got_gradient = jax.value_and_grad(loss, has_aux=True)(variables, scan)
    same(got, want)
    jax.tree.map(same, got_gradient, want_gradient)
    still = loop.apply(variables, x)
    assert np.abs(want - still).max() > 0.01  # something was dropped


def test_a_single_repetition_is_not_scanned():
    x = jnp.ones((1, 1, 1, 2))
    stage = Stage(2, (1.0, 2.0), scan=True)
    assert scans(stage, stage.init(jax.random.key(0), x), x) == 0
