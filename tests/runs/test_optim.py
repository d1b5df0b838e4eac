"""Schedules, what weight decay reaches, and the backbone's own rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hfgd_jax import config as configuration
from hfgd_jax.runs import optim
from hfgd_jax.runtime.sharding import leaf_name


def _optim(**fields):
    config = configuration.default().optim
    config.update(fields)
    return config


def test_poly_decays_to_zero():
    rate = optim.learning_rate(_optim(learning_rate=0.01, power=0.9), 100)
    steps = np.arange(101)
    got = np.array([rate(s) for s in steps])
    np.testing.assert_allclose(got, 0.01 * (1 - steps / 100) ** 0.9, rtol=1e-5, atol=1e-9)


def test_warmup_rises_then_poly():
    rate = optim.learning_rate(_optim(learning_rate=0.01, warmup_steps=10), 110)
    assert float(rate(0)) == 0
    np.testing.assert_allclose(float(rate(5)), 0.005, rtol=1e-5)
    np.testing.assert_allclose(float(rate(60)), 0.01 * 0.5**0.9, rtol=1e-5)
    assert float(rate(110)) == 0


def test_a_warmup_longer_than_the_run_is_a_tenth_of_it():
    rate = optim.learning_rate(_optim(learning_rate=0.01, warmup_steps=50), 40)
    np.testing.assert_allclose([rate(step) for step in (0, 2, 4, 40)], [0, 0.005, 0.01, 0], rtol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_only_kernels_are_decayed(name):
    params = {"a": {"kernel": jnp.ones(3), "bias": jnp.ones(3), "scale": jnp.ones(3)}}
    tx = optim.make_optimizer(_optim(name=name, learning_rate=0.1, weight_decay=0.5), 10)
    zero = {"a": {k: jnp.zeros(3) for k in params["a"]}}
    updates, _ = tx.update(zero, tx.init(params), params)
    new = optax.apply_updates(params, updates)
    np.testing.assert_allclose(new["a"]["kernel"], 0.95, rtol=1e-6)
    np.testing.assert_array_equal(new["a"]["bias"], 1)
    np.testing.assert_array_equal(new["a"]["scale"], 1)


def test_sgd_momentum_with_l2_by_hand():
    params, grad = {"kernel": jnp.array(2.0)}, {"kernel": jnp.array(1.0)}
    tx = optim.make_optimizer(_optim(name="sgd", learning_rate=0.1, weight_decay=0.01, power=0.0), 10)
    state, velocity, expected = tx.init(params), 0.0, 2.0
    for _ in range(3):
        updates, state = tx.update(grad, state, params)
        params = optax.apply_updates(params, updates)
        velocity = 0.9 * velocity + (1.0 + 0.01 * expected)
        expected -= 0.1 * velocity
    np.testing.assert_allclose(params["kernel"], expected, rtol=1e-6)


def test_clipping_bounds_the_norm():
    params = {"kernel": jnp.zeros(4)}
    tx = optim.make_optimizer(
        _optim(name="sgd", learning_rate=1.0, weight_decay=0.0, momentum=0.0, clip_norm=1.0), 10
    )
    updates, _ = tx.update({"kernel": jnp.full(4, 100.0)}, tx.init(params), params)
    np.testing.assert_allclose(optax.tree.norm(updates), 1.0, rtol=1e-5)


def two_updates(params, gradients, **fields):
    """The second of two updates, and the optimizer state's leaf names."""
    fields = {"learning_rate": 0.1, "weight_decay": 0.5, "clip_norm": 1.0} | fields
    tx = optim.make_optimizer(_optim(**fields), 10)
    state = tx.init(params)
    for gradient in gradients:
        updates, state = tx.update(gradient, state, params)
    return updates, {leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_backbone_has_its_own_learning_rate(name):
    draw = lambda seed: np.random.default_rng(seed).normal(size=3).astype(np.float32)  # noqa: E731
    params, *gradients = (
        {group: {"kernel": draw(seed), "bias": draw(seed + 9)} for group in ("backbone", "context")}
        for seed in range(3)
    )
    same, plain = two_updates(params, gradients, name=name)
    slow, _ = two_updates(params, gradients, name=name, backbone_rate=0.1)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(0.1 * a, b, rtol=1e-6), *(x["backbone"] for x in (same, slow))
    )
    jax.tree.map(np.testing.assert_array_equal, same["context"], slow["context"])

    # Frozen: no update, no state, and the others' as if it were not there.
    frozen, names = two_updates(params, gradients, name=name, backbone_rate=0.0)
    rest, _ = two_updates(
        *({"context": x["context"]} for x in (params,)),
        [{"context": g["context"]} for g in gradients],
        name=name,
    )
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(frozen["backbone"]))
    jax.tree.map(np.testing.assert_array_equal, frozen["context"], rest["context"])
    assert any("/backbone/" in n for n in plain) and not any("/backbone/" in n for n in names)
    if name == "sgd":  # the names that checkpoints without the field have
        leaves = {f"2/0/trace/{group}/{leaf}" for group in params for leaf in ("kernel", "bias")}
        assert plain == leaves | {"2/1/count"}
