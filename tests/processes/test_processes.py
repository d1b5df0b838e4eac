"""Real processes, started here: they restore, score and train what one process does."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from worker import flat, restored, scored, trained

from hfgd_jax import config as configuration
from hfgd_jax.data import builders
from hfgd_jax.data.builders import shapes
from hfgd_jax.data.prepared import open_split
from hfgd_jax.evaluation import metrics
from hfgd_jax.runs import checkpoints
from hfgd_jax.runs.system import build, initial_state

WORKER = Path(__file__).with_name("worker.py")
ROOT = WORKER.parent.parent.parent
STEPS, IMAGES = 8, 11  # eleven: no number of devices or processes divides them


pytestmark = pytest.mark.usefixtures("light_backbone_everywhere")


@pytest.fixture(scope="module")
def alone(light_backbone_everywhere, tmp_path_factory):
    """A config on eight devices of this process, and a folder with its data and a checkpoint of step 0."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "SPLITS", {"train": 24, "val": IMAGES})
        builders.prepare("shapes", None, folder / "data", report=lambda line: None)
    config = configuration.default()
    configuration.set_method(config, "sa_car")
    # A light backbone and short steps: sums in another order flip a ReLU here and there, and a deep ResNet's
    # statistics over few pixels make so much of it that two runs part within some steps.
    configuration.set_backbone(config, "convnext_a")
    configuration.set_tiny(config)
    config.data.data_dir = str(folder / "data")
    config.train.update({"steps": STEPS, "batch_size": 8})
    config.data.crop = (64, 64)
    config.optim.update({"name": "sgd", "learning_rate": 1e-4})
    (folder / "config.json").write_text(configuration.to_json(config))
    state, _ = initial_state(build(config))
    saved = checkpoints.Checkpoints(folder / "run")
    table = open_split(config.data.data_dir, "shapes", "val").table
    saved.save(0, state.model, state.training, checkpoints.meta(0, config, table))
    saved.close()
    return config, folder


@pytest.fixture(scope="module")
def together(alone, tmp_path_factory, user_env, free_port):
    """A folder with what two processes of four devices each make of the same, on a mesh of 4 x 2."""
    _, folder = alone
    out = tmp_path_factory.mktemp("together")
    devices = f"{user_env['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    command = [sys.executable, str(WORKER), f"--coordinator=127.0.0.1:{free_port()}", "--processes=2"]
    command += ["--expect_devices=8"]
    rest = [str(folder / "config.json"), str(folder / "run"), "0", str(out), '{"data": 4, "fsdp": 2}']
    running = [
        subprocess.Popen(
            [*command, f"--process={i}", "--", *rest],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=user_env | {"XLA_FLAGS": devices, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        )
        for i in range(2)
    ]
    printed = [process.communicate(timeout=900)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(printed)
    return out


def of_both(folder, name):
    """What each of the two processes wrote, by name."""
    for process in range(2):
        with np.load(folder / f"{process}_{name}.npz") as arrays:
            yield dict(arrays)


def assert_identical(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)


def test_a_checkpoint_is_restored_bit_by_bit_on_any_mesh(alone, together):
    config, folder = alone
    wanted = flat(restored(config, folder / "run", 0)[1])
    here = config.copy_and_resolve_references()
    here.mesh.update({"data": 1, "fsdp": 4})
    assert_identical(flat(restored(here, folder / "run", 0)[1]), wanted)
    for state in of_both(together, "state"):
        assert_identical(state, wanted)


def test_every_image_is_scored_exactly_once(alone, together):
    config, folder = alone
    system, state = restored(config, folder / "run", 0)
    wanted = scored(config, system, state["model"])
    split = open_split(config.data.data_dir, "shapes", "val")
    assert len(split) == IMAGES
    assert wanted.sum() == sum((split.label(i) != 255).sum() for i in range(IMAGES))
    assert metrics.summarize(wanted, split.table.classes)["mIoU"] > 0
    for score in of_both(together, "score"):
        np.testing.assert_array_equal(score["matrix"], wanted)


def test_two_processes_train_like_one(alone, together):
    losses, before, model = trained(alone[0])
    assert losses.shape == (STEPS,)
    for found in of_both(together, "losses"):
        np.testing.assert_allclose(found["losses"], losses, rtol=1e-5)
    for found in of_both(together, "model"):
        assert found.keys() == model.keys()
        assert apart(model, found) <= 1e-5
    # What was compared has moved by far more than that.
    assert apart(model, before) > 1e-3 and np.ptp(losses) > 1e-3 * losses[0]


def apart(model, other):
    """Distance of all parameters and statistics together, relative to their length."""
    norm = lambda arrays: np.sqrt(sum(np.sum(np.square(x, dtype=float)) for x in arrays))  # noqa: E731
    return norm(model[name] - other[name] for name in model) / norm(model.values())
