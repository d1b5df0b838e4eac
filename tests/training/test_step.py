"""A step: the same on every mesh, accumulation, systems that learn. The loop around it: `test_loop.py`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import random_batch, random_state, tiny_config

from hfgd_jax import config as configuration
from hfgd_jax.models import build_model
from hfgd_jax.runs.system import build
from hfgd_jax.runtime import sharding
from hfgd_jax.training.step import make_train_step

pytestmark = pytest.mark.usefixtures("shallow")
SMALL = (33, 33)  # a crop for what is slow on a CPU: float64, and convolutions in a loop (accumulation)


def compiled_step(config, dtype=None):
    """The system of a config, its first state and its training step."""
    system = build(config)
    if dtype:
        model = build_model(config.model, config.data.num_classes, dtype, system.model.constrain)
        system = dataclasses.replace(system, model=model)
    state = random_state(system)
    if dtype:
        state = state.replace(batch_stats=jax.tree.map(lambda x: x.astype(dtype), state.batch_stats))
    layout = jax.tree.map(lambda x: x.sharding, state)
    return system, state, jax.jit(make_train_step(system), out_shardings=(layout, None))


def step_once(config, batch, dtype=None):
    system, state, step = compiled_step(config, dtype)
    state, metrics = step(state, sharding.global_batch(system.mesh, batch))
    return jax.device_get(state), jax.device_get(metrics)


def assert_close(one, other, rtol, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), one, other)


def update_error(start, one, other):
    """Norm of the difference of two steps from `start`, relative to the first step's."""
    norm = lambda tree: float(np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(tree))))  # noqa: E731
    step, difference = (jax.tree.map(np.subtract, one, x) for x in (start, other))
    return norm(difference) / norm(step)


@pytest.fixture(scope="module")
def step_of_one(tmp_path_factory):
    """A batch, the fields of a config, the state before, and what one device makes of them."""
    batch = random_batch(8, SMALL)
    batch["label"][0] = 255  # one device's whole share is ignored
    fields = {"optim.name": "sgd", "optim.learning_rate": 0.1, "train.batch_size": 8}
    config = tiny_config(tmp_path_factory.mktemp("none"), **fields)
    start = jax.device_get(random_state(build(config)))
    with jax.enable_x64(True):
        return batch, fields, start, *step_once(config, batch, dtype=jnp.float64)


@pytest.mark.parametrize(
    "mesh",
    [
        {"mesh.data": 4, "mesh.fsdp": 2, "mesh.constrain_decoder": True},
        {"mesh.data": 1, "mesh.fsdp": 8, "model.backbone.remat": True},
    ],
    ids=["data=4,fsdp=2", "fsdp=8"],
)
def test_every_mesh_takes_the_step_of_one_device(step_of_one, mesh, tmp_path):
    """Batch norm, CAR centres and the divisor of the loss are global: the mesh changes nothing.

    In float64, where sums in another order (as the mesh makes them, or another order of the rows) do not
    flip a ReLU here and there, which in float32 changes the gradient by a percent. Of data=8 alone:
    `processes/test_processes.py`.
    """
    assert len(jax.devices()) == 8, "conftest sets --xla_force_host_platform_device_count=8"
    batch, fields, start, one, m1 = step_of_one
    with jax.enable_x64(True):
        eight, m8 = step_once(tiny_config(tmp_path, **fields | mesh), batch, dtype=jnp.float64)
    for name in m1:
        np.testing.assert_allclose(m1[name], m8[name], rtol=1e-5, err_msg=name)
    assert_close(one.batch_stats, eight.batch_stats, 1e-5, 1e-6)
    assert update_error(start.params, one.params, eight.params) < 1e-5


def test_a_step_on_less_data_differs(step_of_one, tmp_path):
    """Every parameter moved, and a batch less one device's share moves elsewhere."""
    batch, fields, start, one, _ = step_of_one
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), start.params, one.params)
    assert all(jax.tree.leaves(moved))
    label = batch["label"].copy()
    label[1] = 255
    less, _ = step_once(tiny_config(tmp_path, **fields), batch | {"label": label})
    assert update_error(start.params, one.params, less.params) > 2e-2


def test_accumulation_equals_the_whole_batch(tmp_path, light_backbone):
    """Two equal micro-batches: the same gradients, statistics and metrics as either alone."""
    half = random_batch(2, SMALL)
    twice = {key: np.repeat(value, 2, axis=0) for key, value in half.items()}
    # Momentum-free SGD: the parameters show the gradient itself.
    fields = {"optim.name": "sgd", "optim.learning_rate": 0.1, "optim.momentum": 0.0}
    fields |= {"loss.class_weights": (1, 2, 3, 4, 5, 4, 3, 2, 1), "loss.hard_pixels": 0.7}
    more = fields | {"train.batch_size": 4, "train.accumulate": 2}
    start = jax.device_get(random_state(build(tiny_config(tmp_path))))
    with jax.enable_x64(True):
        one, m1 = step_once(tiny_config(tmp_path, **fields), half, dtype=jnp.float64)
        two, m2 = step_once(tiny_config(tmp_path, **more), twice, dtype=jnp.float64)
    for name in m1:
        np.testing.assert_allclose(m1[name], m2[name], rtol=1e-5, err_msg=name)
    assert update_error(start.params, one.params, two.params) < 1e-5


def test_accumulation_divides_by_the_valid_pixels_of_the_whole_batch(tmp_path, light_backbone):
    """A micro-batch with few valid pixels must not weigh as much as a full one."""
    batch = random_batch(2, SMALL)
    batch["label"][1] = 255
    batch["label"][1, 20, 20] = 3
    more = {"loss.car": 0.0, "loss.class_weights": (70, 80, 90, 100, 110, 120, 130, 140, 150)}
    _, metrics = step_once(tiny_config(tmp_path, "fcn", **more | {"train.accumulate": 2}), batch)
    _, first = step_once(
        tiny_config(tmp_path, "fcn", **more | {"train.batch_size": 1}),
        {k: v[:1] for k, v in batch.items()},
    )
    valid = (batch["label"] != 255).sum()
    assert abs(metrics["student"] - first["student"]) < 0.02 * first["student"] + 20 / valid


def test_accumulation_divides_by_all_pixels_where_they_are_the_divisor(tmp_path, light_backbone):
    batch = random_batch(2, SMALL)
    batch["label"][1] = 255
    fields = {"loss.car": 0.0, "train.accumulate": 2}
    found = {
        divisor: step_once(tiny_config(tmp_path, "fcn", **fields | {"loss.divisor": divisor}), batch)[1]
        for divisor in ("valid", "all")
    }
    share = (batch["label"] != 255).mean()
    np.testing.assert_allclose(found["all"]["student"], share * found["valid"]["student"], rtol=1e-5)


@pytest.mark.parametrize("method", ["sa_car", "hfgd_os2"])
def test_a_model_learns_a_batch_and_survives_an_ignored_one(method, tmp_path):
    config = tiny_config(tmp_path)
    configuration.set_method(config, method)
    config.optim.learning_rate = 2e-2
    batch = random_batch(2)
    batch["label"][:] = 2
    batch["label"][:, :, 33:] = 5
    system, state, step = compiled_step(config)
    losses = []
    for _ in range(12):
        state, metrics = step(state, sharding.global_batch(system.mesh, batch))
        losses.append(float(metrics["student"]))
    assert losses[-1] < 0.8 * losses[0]

    batch["label"][:] = 255
    state, metrics = step(state, sharding.global_batch(system.mesh, batch))
    assert all(np.isfinite(v) for v in metrics.values())
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def test_bfloat16_keeps_float32_state(tmp_path, light_backbone):
    state, metrics = step_once(tiny_config(tmp_path, **{"train.dtype": "bfloat16"}), random_batch(2))
    leaves = jax.tree.leaves((state.params, state.batch_stats))
    assert {x.dtype for x in leaves} == {np.dtype("float32")}
    assert np.isfinite(metrics["loss"])


def test_each_step_has_randomness_of_its_own(tmp_path):
    """Stochastic depth: the same state and batch lose more or less at another step, the same at the same."""
    config = tiny_config(tmp_path, "fcn", **{"train.batch_size": 2})
    configuration.set_backbone(config, "convnext_a")
    config.model.backbone.drop_path = 0.5
    system, state, step = compiled_step(config)
    batch = sharding.global_batch(system.mesh, random_batch(2))
    losses = [
        float(step(state.replace(step=state.step * 0 + n), batch)[1]["loss"]) for n in (0, 0, 1, 2, 3, 4)
    ]
    assert losses[0] == losses[1] and len(set(losses)) > 2  # few blocks: some steps lose the same ones
