"""hfgd_jax.tools.scores: finished runs side by side."""

import json

import pytest

from hfgd_jax.errors import UserError
from hfgd_jax.tools import scores


def _run(folder, miou, per_class):
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps({"step": 4, "mIoU": miou, "per_class": per_class}))
    return folder


def test_two_runs_and_their_difference(tmp_path):
    one = _run(tmp_path / "one", 0.5, {"road": 0.4, "thin pole": 0.6, "sky": None})
    two = _run(tmp_path / "two", 0.45, {"road": 0.5, "thin pole": 0.4, "sky": 0.1})
    lines = scores.table({"one": scores.read(one), "two": scores.read(two)}).splitlines()
    assert lines[0].split() == ["IoU", "%", "one", "two", "difference"]
    assert lines[2].split() == ["road", "40.00", "50.00", "-10.00"]
    assert lines[3].split() == ["thin", "pole", "60.00", "40.00", "+20.00"]
    assert lines[4].split() == ["sky", "n/a", "10.00", "n/a"]
    assert lines[-1].split() == ["mIoU", "50.00", "45.00", "+5.00"]


def test_one_run(tmp_path):
    one = _run(tmp_path / "one", None, {"road": None})
    assert scores.table({"one": scores.read(one)}).splitlines()[-1].split() == ["mIoU", "n/a"]


def test_a_run_without_evaluation_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="holds no evaluation"):
        scores.read(tmp_path)
    (tmp_path / "metrics.json").write_text('{"mIoU": 0.')
    with pytest.raises(UserError, match="holds no evaluation"):
        scores.read(tmp_path)
