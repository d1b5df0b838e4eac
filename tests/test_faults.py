"""What goes wrong around a run: each fault a line that says what to do, and the last checkpoint is kept.

The steps and the evaluation of these runs are played, so that nothing compiles for long; files, records,
checkpoints and errors are real. Damaged checkpoints: `test_checkpoints.py`.
"""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from etils import epath

from hfgd_jax import config as configuration
from hfgd_jax.data import pipeline
from hfgd_jax.data.prepared import CorruptRecordError, Split, open_split
from hfgd_jax.errors import StuckError, UserError
from hfgd_jax.runs.checkpoints import Checkpoints
from hfgd_jax.runs.workdir import failing_in_one_line, read_config
from hfgd_jax.training import loop


def small_config(data_dir, **fields):
    config = configuration.default()
    configuration.set_tiny(config)
    config.model.update({"context": "identity", "upsampler": "none", "output_stride": 32})
    config.data.data_dir = str(data_dir)
    config.mesh.data = 1
    config.train.steps = 20
    config.checkpoint.every = 1
    config.update_from_flattened_dict(fields)
    return config


def play(monkeypatch, at=None, fault=lambda: None):
    """Lets steps and evaluations be played, and `fault()` happen when step `at` has been read and saved."""
    read = loop.Loop._read

    def read_and_fail(loop, number, *rest):
        read(loop, number, *rest)
        if number == at:
            loop.saved.wait()
            fault()

    def step(state, batch):
        return state.replace(step=state.step + 1), {"loss": 1.0, "gradient_norm": 1.0}

    monkeypatch.setattr(loop.Loop, "_compile", lambda loop, batch: step)
    monkeypatch.setattr(loop.Loop, "_evaluate", lambda loop: None)
    monkeypatch.setattr(loop.Loop, "_log_setup", lambda loop: None)
    monkeypatch.setattr(loop.Loop, "_read", read_and_fail)


def going_on(workdir, data_dir, **fields):
    """The same command once more; returns the exit code."""
    return loop.run(small_config(data_dir, **fields), str(workdir))


@pytest.fixture(scope="module")
def stopped(shapes_dir, tmp_path_factory):
    """The workdir of a run of 20 steps that was stopped at step 2 or 3, to copy."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        play(patch, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert going_on(workdir, shapes_dir) == 130
    return workdir


@pytest.fixture
def workdir(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def data_dir(shapes_dir, tmp_path):
    """A data set of its own, to spoil."""
    shutil.copytree(shapes_dir, tmp_path / "data")
    return tmp_path / "data"


def last_step(workdir):
    return Checkpoints(workdir, read_only=True).latest_step()


# -- the workdir --


def test_a_workdir_that_is_removed(workdir, shapes_dir, monkeypatch):
    play(monkeypatch, 5, lambda: shutil.rmtree(workdir))
    with pytest.raises(UserError, match=rf"^--workdir={workdir}: was removed while the run wrote to it"):
        going_on(workdir, shapes_dir)
    assert not (workdir / "checkpoints").exists()  # nothing that looks like half a run


def test_a_disk_without_room_for_the_records(workdir, shapes_dir, monkeypatch):
    """As for checkpoints, whose disk `test_main.py` fills up."""

    def full():
        raise OSError(28, "No space left on device")

    play(monkeypatch, 5, full)
    with pytest.raises(
        UserError, match=r"cannot be written to \(.*No space left.*last checkpoint is of step 4"
    ):
        going_on(workdir, shapes_dir)
    assert last_step(workdir) == 4


def test_a_workdir_that_is_read_only(user_env):
    """In a process that may not write to it: root may write anywhere, and becomes somebody else."""
    code = (
        "import os; from hfgd_jax.runtime import shell; from hfgd_jax.runs.checkpoints import Checkpoints\n"
        "os.geteuid() or os.setuid(65534)\n"
        "shell.run(lambda argv: Checkpoints(os.environ['FOLDER']).close())"
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        result = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env=user_env | {"FOLDER": folder, "HOME": folder},
        )
        assert result.returncode == 2, result.stderr
        assert re.search(rf"^error: --workdir={folder}: cannot be written to \(.*denied", result.stderr)
        assert not any(Path(folder).iterdir())


@pytest.mark.parametrize("content", ["", '{"model": {"back', b"\xff\xfe\x00\x01", None])
def test_a_config_that_is_damaged_comes_back_from_the_checkpoint(content, workdir, shapes_dir, capsys):
    path = workdir / "config.json"
    before = configuration.from_json(path.read_text())
    path.unlink()
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert configuration.differences(read_config(epath.Path(workdir)), before) == []
    assert "taking the config that its latest checkpoint holds" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"train\.seed: 0 -> 5"):  # another run is still refused
        loop.check_workdir(epath.Path(workdir), small_config(shapes_dir, **{"train.seed": 5}))


def test_a_damaged_config_without_checkpoints_is_not_overwritten(tmp_path):
    (tmp_path / "config.json").write_text("not ours")
    with pytest.raises(UserError, match=r"config\.json that cannot be read .*remove it, or use another"):
        read_config(epath.Path(tmp_path))


def test_a_damaged_checkpoint_and_config_are_made_good_by_the_training(
    workdir, shapes_dir, monkeypatch, capsys
):
    """The run goes on from the checkpoint before, and takes the step once more, records and all."""
    last, path = last_step(workdir), workdir / "config.json"
    before = path.read_text()
    path.write_text(before[:100])
    (workdir / "checkpoints" / str(last) / "meta" / "metadata").write_text("{")
    play(monkeypatch, 5, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert going_on(workdir, shapes_dir) == 130
    said = capsys.readouterr().err
    assert f"{last} is damaged: meta: JSONDecodeError" in said and f"going on from step {last - 1}" in said
    assert (workdir / "damaged" / str(last)).is_dir() and last_step(workdir) >= 5
    assert path.read_text() == before
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    taken = [r["step"] for r in records if "loss" in r]
    assert taken == list(range(1, last_step(workdir) + 1))
    saves = [r for r in records if "saved_step" in r]
    assert all(
        0 < r["save_seconds"] <= r["save_total_seconds"] and r["step"] >= r["saved_step"] for r in saves
    )
    assert {r["saved_step"] for r in saves} >= {4, 5}


# -- the data --


def records_file(data_dir, split="train"):
    return next(data_dir.rglob(f"*{split}*.array_record*"))


def test_a_data_set_that_is_removed_while_a_run_reads_it(workdir, data_dir, monkeypatch):
    """Files that are open stay readable, so that the run goes on; the next start says what is missing."""
    play(monkeypatch, 4, lambda: shutil.rmtree(data_dir / "shapes"))
    assert going_on(workdir, data_dir, **{"checkpoint.every": 10}) == 0
    assert last_step(workdir) == 20
    with pytest.raises(UserError, match=r"data set 'shapes' is not prepared in .*run: python -m"):
        open_split(data_dir, "shapes", "train")


def test_a_data_set_that_is_gone_before_it_is_read(data_dir):
    """What was not yet open cannot be read: the record is named, and skipping stops where all is gone."""
    split = open_split(data_dir, "shapes", "train")
    shutil.rmtree(data_dir / "shapes")
    config = small_config(data_dir).data
    with (
        pipeline.train_batches(split, config, batch_size=2, seed=0, mean_pixel=(0, 0, 0)) as batches,
        pytest.raises(
            CorruptRecordError, match=r"data set 'shapes' in .*split 'train', record \d+ .*cannot be"
        ),
    ):
        next(batches)
    config.skip_corrupt = True
    with (
        pipeline.train_batches(split, config, batch_size=2, seed=0, mean_pixel=(0, 0, 0)) as batches,
        pytest.raises(UserError, match=r"24 records one after the other .*removed or cut short\?"),
    ):
        for _ in range(12):
            next(batches)


def test_a_data_set_that_is_cut_short_while_a_run_reads_it(workdir, data_dir, monkeypatch):
    path = records_file(data_dir)
    play(monkeypatch, 4, lambda: os.truncate(path, path.stat().st_size // 8))
    with pytest.raises(
        CorruptRecordError, match=r"data set 'shapes' in .*split 'train', record \d+ .*cannot be"
    ):
        going_on(workdir, data_dir)
    assert last_step(workdir) >= 4


def hang(release):
    def example(self, index):
        release.wait()
        raise CorruptRecordError("released")

    return example


def test_a_data_worker_that_hangs(workdir, shapes_dir, monkeypatch):
    release = threading.Event()
    play(monkeypatch, 4, lambda: monkeypatch.setattr(Split, "example", hang(release)))
    start = time.monotonic()
    try:
        with pytest.raises(
            StuckError,
            match=r"config\.data\.timeout=1: data set 'shapes', split 'train', batch \d+: no batch for so",
        ):
            going_on(workdir, shapes_dir, **{"data.timeout": 1.0})
    finally:
        release.set()
    assert time.monotonic() - start < 60
    assert last_step(workdir) >= 4


def test_an_evaluation_whose_data_hangs(shapes_dir, monkeypatch):
    release, split = threading.Event(), open_split(shapes_dir, "shapes", "val")
    monkeypatch.setattr(Split, "example", hang(release))
    batches = pipeline.eval_batches(split, batch_size=2, mean_pixel=(0, 0, 0), timeout=0.3)
    try:
        with pytest.raises(StuckError, match=r"config\.data\.timeout=0\.3: .*split 'val', batch 0"):
            next(batches)
        batches.close()  # at once: it does not wait for what hangs
    finally:
        release.set()


HUNG = """
import sys, threading, time
from hfgd_jax.runtime import shell
from hfgd_jax.errors import StuckError
def main(argv):
    thread = threading.Thread(target=threading.Event().wait)
    thread.start()
    raise StuckError("config.data.timeout=1: no batch")
shell.run(main)
"""


def test_a_thread_that_hangs_does_not_keep_a_command_from_ending(user_env):
    result = subprocess.run(
        [sys.executable, "-c", HUNG], capture_output=True, text=True, env=user_env, timeout=60
    )
    assert (result.returncode, result.stderr) == (2, "error: config.data.timeout=1: no batch\n")


def test_a_data_worker_that_is_killed(shapes_dir):
    split = open_split(shapes_dir, "shapes", "train")
    config = small_config(shapes_dir, **{"data.workers": 1}).data
    before = set(multiprocessing.active_children())
    with pipeline.train_batches(split, config, batch_size=2, seed=0, mean_pixel=(0, 0, 0)) as batches:
        next(batches)
        (worker,) = set(multiprocessing.active_children()) - before
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(
            UserError, match=r"split 'train', batch \d+: a data worker has died .*config\.data\.workers"
        ):
            for _ in range(100):
                next(batches)


def test_errors_outside_the_workdir_are_not_its_own(tmp_path):
    with pytest.raises(FileNotFoundError), failing_in_one_line(epath.Path(tmp_path / "run")):
        (tmp_path / "other").read_text()


# -- the table --


def test_every_row_of_the_fault_table_names_a_test():
    root = Path(__file__).resolve().parent.parent
    page = (root / "docs" / "reliability.md").read_text()
    rows = [line for line in page.splitlines() if re.match(r"\|(?!\s*(fault|---))", line) and "test_" in line]
    assert len(rows) >= 20
    table = page[page.index("| fault |") :].split("\n\n")[0].splitlines()[2:]
    assert rows == table  # every row has one
    for row in table:
        for file, name in re.findall(r"`(test_\w+\.py)::(test_\w+)`", row) or [("", "")]:
            assert file and f"def {name}(" in (root / "tests" / file).read_text(), row
