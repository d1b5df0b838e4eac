"""The benchmarks' commands start; what they measure is not tested."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_ablation_skips_what_is_recorded(tmp_path):
    (tmp_path / "hfgd_seed1.json").write_text("{}")
    command = [sys.executable, "benchmarks/ablation.py", "--config=configs/camvid.py", "--runs=unused"]
    command += [f"--records={tmp_path}", "--methods=hfgd", "--seeds=1"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "hfgd_seed1: recorded already\n"), ended.stderr


def test_the_planted_faults_fit_the_sources():
    """Each one's text stands in its file exactly once, and its tests are there."""
    command = [sys.executable, "benchmarks/planted_faults.py", "--check"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
