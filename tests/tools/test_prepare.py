"""The command that prepares data sets."""

import subprocess
import sys

import pytest

from hfgd_jax.data import prepared


def run(*arguments, module="hfgd_jax.tools.prepare"):
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_command_prepares_and_prints_the_folder(camvid_raw, tmp_path):
    where = ("--source", camvid_raw, "--data_dir", tmp_path / "data")
    done = run("--dataset", "camvid", *where, "--allow_partial")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"prepared {tmp_path / 'data' / 'camvid' / '1.0.0'}\n"
    assert done.stderr.splitlines() == ["camvid train: 6/6", "camvid val: 5/5"]
    assert len(prepared.open_split(tmp_path / "data", "camvid", "train")) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset=camvid"], "error: data set 'camvid' needs its raw folder: --source SOURCE"),
        (["--dataset=cmavid"], "error: flag --dataset=cmavid: value should be one of <ade20k|camvid|"),
        (["--dataset=shapes", "--datadir=x"], "error: --datadir: no such option; did you mean --data_dir"),
        (["--dataset=shapes", "extra"], "error: unexpected argument 'extra'"),
        ([], "error: --dataset: needed"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, message, tmp_path):
    done = run(*arguments, f"--data_dir={tmp_path / 'data'}")
    assert done.returncode == 2
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_a_bad_label_is_one_line_with_the_file(camvid_raw, tmp_path):
    path = sorted((camvid_raw / "val" / "labels").glob("*.png"))[1]
    path.write_bytes(path.read_bytes()[:60])
    where = (f"--source={camvid_raw}", f"--data_dir={tmp_path / 'data'}")
    done = run("--dataset=camvid", *where, "--allow_partial")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {path}: label cannot be read")
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "data").iterdir()) == []


def test_a_partial_copy_is_one_line_and_exit_code_2(camvid_raw, tmp_path):
    done = run("--dataset=camvid", f"--source={camvid_raw}", f"--data_dir={tmp_path / 'data'}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "train has 6 records, its owners count 367" in done.stderr
    assert not (tmp_path / "data").exists()


def test_val_ratio_is_for_folders_alone(camvid_raw, tmp_path):
    where = (f"--source={camvid_raw}", f"--data_dir={tmp_path / 'data'}")
    done = run("--dataset=camvid", *where, "--val_ratio=0.2")
    assert done.returncode == 2 and "has splits of its own" in done.stderr


def test_help_exits_without_error():
    done = run("--help")
    assert done.returncode == 0 and "--data_dir" in done.stdout + done.stderr
