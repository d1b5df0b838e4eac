"""The loop: determinism, devices, accumulation, bad numbers. Kills and signals: `test_resume.py`."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from hfgd_jax import config as configuration
from hfgd_jax import sharding, train
from hfgd_jax.errors import UserError
from hfgd_jax.models import build_model
from hfgd_jax.signals import Stop
from hfgd_jax.system import build, initial_state, make_init


def tiny_config(data_dir, **fields):
    config = configuration.default()
    configuration.set_method(config, "hfgd")
    configuration.set_tiny(config)
    config.data.data_dir = str(data_dir)
    config.optim.learning_rate = 1e-3
    config.mesh.data = 1
    config.update_from_flattened_dict(fields)
    return config


def random_batch(size, crop=(65, 65), classes=9, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, (size, *crop)).astype(np.uint8)
    label[:, :9] = 255
    return {"image": rng.integers(0, 256, (size, *crop, 3)).astype(np.uint8), "label": label}


def compiled_step(config, dtype=None):
    """The system of a config, its first state and its training step."""
    system = build(config)
    if dtype:
        model = build_model(config.model, config.data.num_classes, dtype, system.model.constrain)
        system = dataclasses.replace(system, model=model)
    state, _ = initial_state(system)
    if dtype:
        state = state.replace(batch_stats=jax.tree.map(lambda x: x.astype(dtype), state.batch_stats))
    layout = jax.tree.map(lambda x: x.sharding, state)
    return system, state, jax.jit(train.make_train_step(system), out_shardings=(layout, None))


def step_once(config, batch, dtype=None):
    system, state, step = compiled_step(config, dtype)
    state, metrics = step(state, sharding.global_batch(system.mesh, batch))
    return jax.device_get(state), jax.device_get(metrics)


def assert_close(one, other, rtol, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), one, other)


def assert_identical(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), one, other)


def update_error(start, one, other):
    """Norm of the difference of two steps from `start`, relative to the first step's."""
    norm = lambda tree: float(np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(tree))))  # noqa: E731
    step, difference = (jax.tree.map(np.subtract, one, x) for x in (start, other))
    return norm(difference) / norm(step)


@pytest.fixture(scope="module")
def step_of_one(tmp_path_factory):
    """A batch, the fields of a config, the state before, and what one device makes of them."""
    batch = random_batch(8)
    batch["label"][0] = 255  # one device's whole share is ignored
    fields = {"optim.name": "sgd", "optim.learning_rate": 0.1, "train.batch_size": 8}
    config = tiny_config(tmp_path_factory.mktemp("none"), **fields)
    start = jax.device_get(initial_state(build(config))[0])
    with jax.enable_x64(True):
        return batch, fields, start, *step_once(config, batch, dtype=jnp.float64)


@pytest.mark.parametrize(
    "mesh",
    [
        {"mesh.data": 8},
        {"mesh.data": 4, "mesh.fsdp": 2, "mesh.constrain_decoder": True},
        {"mesh.data": 1, "mesh.fsdp": 8, "model.backbone.remat": True},
    ],
    ids=["data=8", "data=4,fsdp=2", "fsdp=8"],
)
def test_every_mesh_takes_the_step_of_one_device(step_of_one, mesh, tmp_path):
    """Batch norm, CAR centres and the divisor of the loss are global: the mesh changes nothing.

    In float64, where sums in another order (as the mesh makes them, or another order of the rows) do not
    flip a ReLU here and there, which in float32 changes the gradient by a percent.
    """
    assert len(jax.devices()) == 8, "conftest sets --xla_force_host_platform_device_count=8"
    batch, fields, start, one, m1 = step_of_one
    with jax.enable_x64(True):
        eight, m8 = step_once(tiny_config(tmp_path, **fields | mesh), batch, dtype=jnp.float64)
    for name in m1:
        np.testing.assert_allclose(m1[name], m8[name], rtol=1e-5, err_msg=name)
    assert_close(one.batch_stats, eight.batch_stats, 1e-5, 1e-6)
    assert update_error(start.params, one.params, eight.params) < 1e-5


def test_the_comparison_of_meshes_would_notice(step_of_one, tmp_path):
    """Every parameter moved, and a batch less one device's share moves elsewhere."""
    batch, fields, start, one, _ = step_of_one
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), start.params, one.params)
    assert all(jax.tree.leaves(moved))
    label = batch["label"].copy()
    label[1] = 255
    less, _ = step_once(tiny_config(tmp_path, **fields), batch | {"label": label})
    assert update_error(start.params, one.params, less.params) > 2e-2


def test_accumulation_equals_the_whole_batch(tmp_path):
    """Two equal micro-batches: the same gradients, statistics and metrics as either alone."""
    half = random_batch(2)
    twice = {key: np.repeat(value, 2, axis=0) for key, value in half.items()}
    # Momentum-free SGD: the parameters show the gradient itself.
    fields = {"optim.name": "sgd", "optim.learning_rate": 0.1, "optim.momentum": 0.0}
    fields |= {"loss.class_weights": (1, 2, 3, 4, 5, 4, 3, 2, 1), "loss.hard_pixels": 0.7}
    more = fields | {"train.batch_size": 4, "train.accumulate": 2}
    start = jax.device_get(initial_state(build(tiny_config(tmp_path)))[0])
    with jax.enable_x64(True):
        one, m1 = step_once(tiny_config(tmp_path, **fields), half, dtype=jnp.float64)
        two, m2 = step_once(tiny_config(tmp_path, **more), twice, dtype=jnp.float64)
    for name in m1:
        np.testing.assert_allclose(m1[name], m2[name], rtol=1e-5, err_msg=name)
    assert update_error(start.params, one.params, two.params) < 1e-5


def test_accumulation_divides_by_the_valid_pixels_of_the_whole_batch(tmp_path):
    """A micro-batch with few valid pixels must not weigh as much as a full one."""
    batch = random_batch(2)
    batch["label"][1] = 255
    batch["label"][1, 40, 40] = 3
    more = {"loss.car": 0.0, "loss.class_weights": (70, 80, 90, 100, 110, 120, 130, 140, 150)}
    _, metrics = step_once(tiny_config(tmp_path, **more | {"train.accumulate": 2}), batch)
    _, first = step_once(
        tiny_config(tmp_path, **more | {"train.batch_size": 1}),
        {k: v[:1] for k, v in batch.items()},
    )
    valid = (batch["label"] != 255).sum()
    assert abs(metrics["student"] - first["student"]) < 0.02 * first["student"] + 20 / valid


@pytest.mark.parametrize("method", ["fcn", "sa_car", "sfpn", "hfgd_os2"])
def test_every_system_learns_a_batch_and_bears_an_ignored_one(method, tmp_path):
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


def test_bfloat16_keeps_float32_state(tmp_path):
    state, metrics = step_once(tiny_config(tmp_path, **{"train.dtype": "bfloat16"}), random_batch(2))
    leaves = jax.tree.leaves((state.params, state.batch_stats))
    assert {x.dtype for x in leaves} == {np.dtype("float32")}
    assert np.isfinite(metrics["loss"])


def test_the_same_config_run_twice_is_identical(shapes_dir, tmp_path):
    """With class weights, which each run computes for itself."""
    states = []
    for name in ("a", "b"):
        config = tiny_config(shapes_dir, **{"loss.balance": "median_frequency"})
        loop = train.Loop(config, str(tmp_path / name), Stop())
        loop.run()
        weights = loop.system.config.loss.class_weights
        assert len(set(weights)) == 9
        told = loop._class_weights()
        assert told.startswith(f"class weights (median_frequency): {weights[0]:.3g} sky, ")
        saved = configuration.from_json((tmp_path / name / "config.json").read_text())
        assert configuration.differences(saved, config) == []  # the same command goes on
        states.append(jax.device_get((loop.state.params, loop.state.opt_state)))
    assert_identical(*states)
    first, second = ((tmp_path / n / "metrics.json").read_text() for n in ("a", "b"))
    assert json.loads(first)["step"] == 4
    assert first == second


def test_what_a_workdir_holds(shapes_dir, tmp_path):
    config = tiny_config(shapes_dir, **{"eval.every": 2, "eval.overlays": 2})
    assert train.run(config, str(tmp_path)) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == [1, 2, 3, 4]
    for key in ("teacher", "student", "car_intra", "learning_rate", "images_per_second", "data_wait"):
        assert key in lines[0]
    assert [line["step"] for line in lines if "mIoU" in line] == [2, 4]
    summary = json.loads((tmp_path / "metrics.json").read_text())
    assert set(summary) == {"step", "mIoU", "pixel_accuracy", "mean_accuracy", "per_class"}
    assert len(summary["per_class"]) == 9
    assert len(list((tmp_path / "images").glob("step_*/*.png"))) == 4
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [2, 4]
    assert len(list((tmp_path / "best").iterdir())) == 1
    # A second call finds it finished and loses nothing.
    before = (tmp_path / "metrics.jsonl").read_text()
    assert train.run(config, str(tmp_path)) == 0
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_only_the_latest_checkpoints_are_kept(shapes_dir, tmp_path):
    config = tiny_config(shapes_dir, **{"checkpoint.every": 1, "checkpoint.keep": 2})
    train.run(config, str(tmp_path))
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [3, 4]


def test_another_run_in_the_workdir_is_refused(shapes_dir, tmp_path):
    workdir = epath.Path(tmp_path)
    (workdir / "config.json").write_text(configuration.to_json(tiny_config(shapes_dir)))
    with pytest.raises(UserError, match=r"optim\.learning_rate: 0\.001 -> 0\.5"):
        train.check_workdir(workdir, tiny_config(shapes_dir, **{"optim.learning_rate": 0.5}))
    # What does not touch the weights may change.
    train.check_workdir(workdir, tiny_config(shapes_dir, **{"eval.every": 3, "data.threads": 1}))


def test_checkpoints_of_an_unknown_run_are_refused(shapes_dir, tmp_path):
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    with pytest.raises(UserError, match="has checkpoints but no config"):
        train.check_workdir(epath.Path(tmp_path), tiny_config(shapes_dir))


def test_a_first_try_that_fails_leaves_the_workdir_free(shapes_dir, tmp_path, monkeypatch):
    """The path of the weights, or the crop, is corrected and the same workdir used again."""
    workdir = tmp_path / "run"
    wrong = {"model.backbone.weights": str(tmp_path / "missing.safetensors")}
    with pytest.raises(UserError, match="no such file"):
        train.run(tiny_config(shapes_dir, **wrong), str(workdir))

    def too_large(compiled, config, mesh):
        raise UserError("too large")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="too large"):
        patch.setattr(train, "check_memory", too_large)
        train.run(tiny_config(shapes_dir), str(workdir))
    assert not (workdir / "config.json").exists()
    assert train.run(tiny_config(shapes_dir), str(workdir)) == 0
    assert (workdir / "config.json").exists()


def test_a_loss_that_is_not_finite_stops_the_run(shapes_dir, tmp_path):
    config = tiny_config(shapes_dir, **{"optim.learning_rate": 1e3, "optim.name": "sgd", "train.steps": 30})
    with pytest.raises(UserError, match=r"step \d+: loss .*records: ") as caught:
        train.run(config, str(tmp_path))
    named = str(caught.value).split("records: ")[1].split(". ")[0].split(", ")
    assert len(named) == 2
    loop_split = train.open_data(config, "train")
    ids = {loop_split.record_id(i) for i in range(len(loop_split))}
    assert set(named) <= ids


def test_corrupt_records_stop_a_run_or_are_counted(spoilt_dir, tmp_path):
    fields = {"data.dataset": "camvid", "data.num_classes": 11, "train.steps": 3, "eval.overlays": 0}
    with pytest.raises(UserError, match=r"split 'train', record \d \(id 'seq0"):
        train.run(tiny_config(spoilt_dir, **fields), str(tmp_path / "strict"))
    config = tiny_config(spoilt_dir, **fields | {"data.skip_corrupt": True})
    assert train.run(config, str(tmp_path / "lenient")) == 0
    lines = [json.loads(x) for x in (tmp_path / "lenient" / "metrics.jsonl").read_text().splitlines()]
    # Three steps of two are one epoch of six records, two of which are spoilt.
    assert [line["corrupt_records"] for line in lines if "loss" in line][-1] == 2


def test_a_crop_beyond_the_machine_is_refused(tmp_path):
    class Analysis:
        argument_size_in_bytes = output_size_in_bytes = alias_size_in_bytes = 0
        temp_size_in_bytes = 2**60

    class Compiled:
        def memory_analysis(self):
            return Analysis()

    config = tiny_config(tmp_path)
    with pytest.raises(UserError, match=r"config\.data\.crop=\(65, 65\).*GiB"):
        train.check_memory(Compiled(), config, build(config).mesh)


def test_a_batch_that_does_not_divide_is_refused(shapes_dir, tmp_path):
    config = tiny_config(shapes_dir, **{"mesh.data": 8, "train.batch_size": 12})
    with pytest.raises(UserError, match=r"must be a multiple of the 8 devices.*use 16 or 8"):
        train.Loop(config, str(tmp_path), Stop())


def test_weights_are_not_decided_by_the_batch(tmp_path):
    """`init` depends on the seed alone."""
    one, same, other = (
        jax.jit(make_init(build(tiny_config(tmp_path))))(jax.random.PRNGKey(seed)).params
        for seed in (0, 0, 1)
    )
    assert_identical(one, same)
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: bool(jnp.any(a != b)), one, other)))
