"""docs/scaling.md: the scripts, modules, rows and result files that it names are there."""

import os
import re

import pytest
from launchers import ROOT

from configs import paper

TEXT = (ROOT / "docs" / "scaling.md").read_text()


def test_scripts_are_there_and_can_be_started():
    named = set(re.findall(r"\blaunch/[\w.]+", TEXT))
    assert {f"launch/{path.name}" for path in (ROOT / "launch").glob("tpu_[pvq]*.sh")} <= named
    assert {"launch/local_pod.py", "launch/gke_jobset.py", "launch/slurm.sbatch"} <= named
    for name in named:
        path = ROOT / name
        assert path.is_file(), name
        assert path.suffix not in (".sh", ".sbatch") or os.access(path, os.X_OK), name


@pytest.mark.parametrize("pattern", [r"hfgd_jax(?:\.\w+)+", r"benchmarks/[\w.-]+\.\w+", r"tests/\w+"])
def test_modules_and_files_are_there(pattern):
    found = set(re.findall(rf"\b{pattern}", TEXT))
    assert found
    for name in found:
        path = name.replace(".", "/") + ".py" if name.startswith("hfgd_jax") else name
        assert (ROOT / path).exists(), name


def test_rows_are_the_papers():
    rows = set(re.findall(r"\b((?:table\d+)/\w+)", TEXT))
    assert len(rows) > 5
    for row in rows:
        paper.get_config(row)
