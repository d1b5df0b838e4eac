"""Real processes, started here: they restore, score and train what one process does."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from worker import flat, restored, scored

from hfgd_jax import config as configuration
from hfgd_jax import train
from hfgd_jax.data import builders
from hfgd_jax.data.builders import shapes
from hfgd_jax.data.source import open_split

WORKER = Path(__file__).with_name("worker.py")
ROOT = WORKER.parent.parent.parent
STEPS = 20


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of one process with eight devices: its config, workdir, and what it restores and scores."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "SPLITS", {"train": 24, "val": 11})  # eleven: no device or process divides them
        builders.prepare("shapes", None, folder / "data", report=lambda line: None)
    config = configuration.default()
    configuration.set_method(config, "hfgd")
    configuration.set_tiny(config)
    config.data.data_dir = str(folder / "data")
    config.train.update({"steps": STEPS, "batch_size": 8})
    config.optim.update({"name": "sgd", "learning_rate": 0.01})
    config.checkpoint.every = STEPS
    config.eval.overlays = 1
    (folder / "config.json").write_text(configuration.to_json(config))
    assert train.run(config, str(folder / "run")) == 0
    return config, folder


@pytest.fixture(scope="module")
def together(alone, tmp_path_factory, user_env):
    """What two processes with four devices each make of the same, on a mesh of 4 x 2."""
    _, folder = alone
    out = tmp_path_factory.mktemp("together")
    devices = f"{user_env['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    env, port = user_env | {"XLA_FLAGS": devices, "PYTHONPATH": str(ROOT)}, free_port()
    command = [sys.executable, str(WORKER), f"--coordinator=127.0.0.1:{port}", "--processes=2"]
    command += ["--expect_devices=8"]
    rest = [str(folder / "config.json"), str(folder / "run"), str(STEPS), str(out), '{"data": 4, "fsdp": 2}']
    running = [
        subprocess.Popen(
            [*command, f"--process={i}", "--", *rest],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=env,
        )
        for i in range(2)
    ]
    printed = [process.communicate(timeout=1200)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], printed
    return out, printed


def test_a_checkpoint_is_restored_bit_by_bit_on_any_mesh(alone, together):
    config, folder = alone
    wanted = None
    for mesh in ({"data": 8}, {"data": 1}, {"data": 1, "fsdp": 4}):
        here = config.copy_and_resolve_references()
        here.mesh.update(mesh)
        _, model, training = restored(here, folder / "run", STEPS)
        state = flat({"model": model, "training": training})
        wanted = wanted or state
        assert state.keys() == wanted.keys()
        assert all(np.array_equal(state[name], wanted[name]) for name in wanted), mesh
    for process in range(2):
        with np.load(together[0] / f"state_{process}.npz") as state:
            assert set(state.files) == wanted.keys()
            assert all(np.array_equal(state[name], wanted[name]) for name in wanted), process


def test_every_image_is_scored_exactly_once(alone, together):
    config, folder = alone
    system, model, _ = restored(config, folder / "run", STEPS)
    wanted = scored(config, system, model)
    split = open_split(config.data.data_dir, "shapes", "val")
    assert len(split) == 11
    assert wanted.sum() == sum((split.label(i) != 255).sum() for i in range(11))
    for process in range(2):
        np.testing.assert_array_equal(np.load(together[0] / f"matrix_{process}.npy"), wanted)


def losses(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return np.array([line["loss"] for line in lines if "loss" in line])


def test_two_processes_train_like_one(alone, together):
    config, folder = alone
    out, printed = together
    one, two = losses(folder / "run"), losses(out / "run")
    assert one.shape == (STEPS,)
    print("loss", np.max(np.abs(one - two) / one))
    ours, theirs = (flat(restored(config, w, STEPS)[1]) for w in (folder / "run", out / "run"))
    for name in ours:
        scale = np.linalg.norm(ours[name])
        print(name, np.linalg.norm(ours[name] - theirs[name]) / scale)
    np.testing.assert_allclose(two, one, rtol=1e-5)
    # Only process 0 talks and draws.
    assert "finished at step" in printed[0] and "finished" not in printed[1]
    assert len(list((out / "run" / "images").rglob("*.png"))) == 1
