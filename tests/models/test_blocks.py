from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hfgd_jax.models.backbones import BACKBONES, resnet
from hfgd_jax.models.backbones.blocks import run_blocks
from hfgd_jax.models.backbones.stochastic import draw, drop_path
from hfgd_jax.models.layers import BatchNorm


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
    remat: bool = False

    @nn.compact
    def __call__(self, x, train: Any = False):
        makers = [partial(Block, gain) for gain in self.kinds]
        names = [f"block_{i}" for i in range(self.depth)]
        drops = draw(self, tuple(self.rate * i for i in range(self.depth)), train)
        return run_blocks(self, makers, names, x, drops, scan=self.scan, remat=self.remat)


def same(got, want):
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def count(what, stage, variables, x):
    return str(jax.make_jaxpr(lambda x: stage.apply(variables, x))(x)).count(f"{what}[")


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("depth, kinds", [(3, (1.0,)), (4, (1.0, 2.0)), (5, (1.0, 2.0))])
def test_scanned_and_rematerialised_blocks_give_the_loop_s_outputs_and_gradients(depth, kinds, remat):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((6, 2, 2, 3)), jnp.float32)
    loop, scan = Stage(depth, kinds, 0.15), Stage(depth, kinds, 0.15, scan=True, remat=remat)
    variables = loop.init(jax.random.key(0), x)
    assert jax.tree.structure(variables) == jax.tree.structure(scan.init(jax.random.key(0), x))
    assert list(variables["params"]) == [f"block_{i}" for i in range(depth)]
    assert (count("scan", scan, variables, x), count("scan", loop, variables, x)) == (1, 0)
    # A block left over by the scan is on its own.
    assert count("remat2", scan, variables, x) == (1 + depth % len(kinds) if remat else 0)

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
    assert count("scan", stage, stage.init(jax.random.key(0), x), x) == 0


@pytest.mark.parametrize(
    ("name", "blocks"), [("resnet18", 4), ("convnext_a", 4), ("swin_t", 5), ("efficientnet_lite0", 16)]
)
def test_every_backbone_rematerialises_its_blocks(name, blocks, shallow):
    """With the same parameters; traced only."""
    image, gradients = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32), {}
    for remat in (False, True):
        net = BACKBONES[name].build(remat=remat)
        variables = jax.eval_shape(lambda key, x, net=net: net.init(key, x, True), jax.random.key(0), image)

        def loss(variables, x, net=net):
            pyramid, updates = net.apply(variables, x, True, mutable=["batch_stats"])
            return sum(f.sum() for f in pyramid.values()), updates

        gradient = jax.grad(loss, has_aux=True)
        assert str(jax.make_jaxpr(loss)(variables, image)).count("remat2[") == (blocks if remat else 0)
        gradients[remat] = jax.eval_shape(gradient, variables, image), variables
    assert gradients[True] == gradients[False]


def test_a_rematerialised_residual_block_trains_as_it_is():
    """ResNet's blocks hold running statistics, which the second computation must not touch again."""
    x = jax.random.normal(jax.random.key(1), (2, 5, 5, 4))
    plain, again = (
        kind(4, False, 1, (1, 1), False, BatchNorm(0.5), jnp.float32, name="block")
        for kind in (resnet.ResNetBlock, nn.remat(resnet.ResNetBlock, static_argnums=2))
    )
    variables = plain.init(jax.random.key(0), x, True)

    def loss(variables, block):
        y, updates = block.apply(variables, x, True, mutable=["batch_stats"])
        return (y**2).sum(), updates

    (want, want_updates), (got, got_updates) = (
        jax.grad(loss, has_aux=True)(variables, block) for block in (plain, again)
    )
    jax.tree.map(same, (got["params"], got_updates), (want["params"], want_updates))
