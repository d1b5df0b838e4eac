"""Weights & Biases, without a network."""

import sys

import numpy as np
import pytest
from tiny_runs import tiny_config

from hfgd_jax.errors import UserError
from hfgd_jax.runs.tracking import Tracker


def test_curves_and_pictures_go_into_one_run_there(tmp_path, shapes_dir, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = tiny_config(shapes_dir)
    names = set()
    for step in (1, 2):  # the second goes on
        tracker = Tracker("test", tmp_path / "run", config)
        tracker.values(step, {"loss": 0.25 * step, "IoU/sky": 0.5})
        tracker.image(step, "confusion", np.zeros((8, 8, 3), np.uint8))
        tracker.close()
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    names = {file.name for file in files}
    assert len(names) == 1 and len(files) >= 1  # the same run there
    text = b"".join(file.read_bytes() for file in files)
    for part in (b"loss", b"IoU/sky", b"confusion", b"optim.learning_rate", b"step"):
        assert part in text, part


def test_nothing_begins_before_there_is_a_value_and_a_missing_package_is_told(
    tmp_path, shapes_dir, monkeypatch
):
    Tracker("test", tmp_path, tiny_config(shapes_dir)).close()
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r'--wandb=test needs wandb: pip install "hfgd_jax\[wandb\]"'):
        Tracker("test", tmp_path, tiny_config(shapes_dir))
