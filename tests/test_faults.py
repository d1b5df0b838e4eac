"""Faults around a run: each raises one line with the way out, and the last checkpoint is kept.

The steps and the evaluation of these runs are stand-ins, so that nothing compiles for long; files, records,
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
from pathlib import Path

import pytest
from etils import epath
from orbax.checkpoint import CheckpointManager

from hfgd_jax import config as configuration
from hfgd_jax.data import pipeline
from hfgd_jax.data.prepared import CorruptRecordError, Split, open_split
from hfgd_jax.errors import UserError
from hfgd_jax.evaluation.evaluator import Evaluator
from hfgd_jax.runs import system
from hfgd_jax.runs.checkpoints import Checkpoints
from hfgd_jax.runs.workdir import failing_in_one_line, read_config
from hfgd_jax.runtime import stall
from hfgd_jax.training import loop

pytestmark = pytest.mark.usefixtures("light_backbone_everywhere")


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


def stand_in(monkeypatch, at=None, fault=lambda: None):
    """Replaces steps and evaluations by stand-ins; `fault()` is called when step `at` was read and saved."""
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


def train_on(workdir, data_dir, **fields):
    """The same command once more; returns the exit code."""
    return loop.run(small_config(data_dir, **fields), str(workdir))


@pytest.fixture(scope="module")
def stopped(shapes_dir, tmp_path_factory):
    """The run directory of a run of 20 steps that was stopped at step 2 or 3, to copy."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert train_on(workdir, shapes_dir) == 130
    return workdir


@pytest.fixture
def workdir(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def data_dir(shapes_dir, tmp_path):
    """A data set of its own, to damage."""
    shutil.copytree(shapes_dir, tmp_path / "data")
    return tmp_path / "data"


def last_step(workdir):
    return Checkpoints(workdir, read_only=True).latest_step()


# -- the run directory --


def test_a_removed_run_directory_ends_the_run(workdir, shapes_dir, monkeypatch):
    stand_in(monkeypatch, 5, lambda: shutil.rmtree(workdir))
    with pytest.raises(UserError, match=rf"^--workdir={workdir}: was removed while the run wrote to it"):
        train_on(workdir, shapes_dir)
    assert not (workdir / "checkpoints").exists()  # nothing that looks like half a run


def test_a_full_disk_ends_the_run_at_the_next_record(workdir, shapes_dir, monkeypatch):
    """As for checkpoints, whose disk `test_main.py` fills up."""

    def full():
        raise OSError(28, "No space left on device")

    stand_in(monkeypatch, 5, full)
    with pytest.raises(
        UserError, match=r"cannot be written to \(.*No space left.*last checkpoint is of step 4"
    ):
        train_on(workdir, shapes_dir)
    assert last_step(workdir) == 4


def test_a_full_disk_is_noticed_before_a_checkpoint_is_written(workdir, shapes_dir, monkeypatch):
    full = lambda folder: shutil._ntuple_diskusage(10**9, 10**9 - 10**4, 10**4)  # noqa: E731
    stand_in(monkeypatch, 5, lambda: monkeypatch.setattr(shutil, "disk_usage", full))
    says = (
        r"no space on the disk, .*needs some \d+\.\d MB, and 0\.0 MB of the disk are free; .*whole: \[.*4\]"
    )
    with pytest.raises(UserError, match=says):
        train_on(workdir, shapes_dir)
    assert last_step(workdir) == 4


def test_a_quota_that_is_used_up_is_named_in_plain_words(workdir, shapes_dir, monkeypatch):
    def exceeded(self, *args, **options):
        raise ValueError("RESOURCE_EXHAUSTED: Error writing local file ...ocdbt.pr)")

    stand_in(monkeypatch, 5, lambda: monkeypatch.setattr(CheckpointManager, "save", exceeded))
    with pytest.raises(UserError, match=r"no space on the disk, or in a quota: it needs some .* MB, and"):
        train_on(workdir, shapes_dir)
    assert last_step(workdir) == 4


def test_a_read_only_run_directory_is_refused(user_env):
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
def test_a_damaged_config_is_read_from_the_checkpoint(content, workdir, shapes_dir, capsys):
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


def test_training_replaces_a_damaged_checkpoint_and_config(workdir, shapes_dir, monkeypatch, capsys):
    """The run goes on from the checkpoint before, and takes the step once more, records and all."""
    last, path = last_step(workdir), workdir / "config.json"
    before = path.read_text()
    path.write_text(before[:100])
    (workdir / "checkpoints" / str(last) / "meta" / "metadata").write_text("{")
    stand_in(monkeypatch, 5, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert train_on(workdir, shapes_dir) == 130
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


def test_a_run_goes_on_if_its_open_data_set_is_removed(workdir, data_dir, monkeypatch):
    """Files that are open stay readable, so that the run goes on; the next start names what is missing."""
    stand_in(monkeypatch, 4, lambda: shutil.rmtree(data_dir / "shapes"))
    assert train_on(workdir, data_dir, **{"checkpoint.every": 10}) == 0
    assert last_step(workdir) == 20
    with pytest.raises(UserError, match=r"data set 'shapes' is not prepared in .*run: python -m"):
        open_split(data_dir, "shapes", "train")


def test_a_data_set_removed_before_it_is_read_is_an_error(data_dir):
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


def test_a_data_set_truncated_during_a_run_is_an_error(workdir, data_dir, monkeypatch):
    path = records_file(data_dir)
    stand_in(monkeypatch, 4, lambda: os.truncate(path, path.stat().st_size // 8))
    with pytest.raises(
        CorruptRecordError, match=r"data set 'shapes' in .*split 'train', record \d+ .*cannot be"
    ):
        train_on(workdir, data_dir)
    assert last_step(workdir) >= 4


# The watching thread ends with an exception, in place of the process.
ENDS = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture
def hanging(monkeypatch):
    """A function after which no example can be read; and the exit codes of the stall limit.

    Where the limit would end the process, reading goes on with an error instead.
    """
    release, codes = threading.Event(), []

    def example(self, index):
        assert release.wait(60)
        raise CorruptRecordError("released")

    def leave(code):
        codes.append(code)
        release.set()
        raise SystemExit  # of the watching thread alone

    monkeypatch.setattr(stall.os, "_exit", leave)
    yield lambda: monkeypatch.setattr(Split, "example", example), codes
    release.set()


@ENDS
def test_a_hanging_data_worker_ends_the_run(workdir, shapes_dir, monkeypatch, hanging, capfd):
    hang, codes = hanging
    stand_in(monkeypatch, 4, hang)
    with pytest.raises(CorruptRecordError, match="released"):
        train_on(workdir, shapes_dir, **{"train.stall_timeout": 6.0, "checkpoint.every": 4})
    assert codes == [75]
    assert re.search(
        r"^error: config\.train\.stall_timeout=6: data set 'shapes', split 'train', batch \d+: no batch for",
        capfd.readouterr().err,
        re.MULTILINE,
    )
    assert last_step(workdir) >= 4


@ENDS
def test_a_hanging_data_worker_ends_an_evaluation(shapes_dir, tmp_path, hanging, capfd):
    hang, codes = hanging
    config = small_config(shapes_dir)
    made = system.build(config)
    split = open_split(shapes_dir, "shapes", "val")
    hang()
    with (
        stall.StallLimit(0.5, tmp_path) as limit,
        pytest.raises(CorruptRecordError, match="released"),
    ):
        Evaluator(made.model, config, made.mesh).score({}, split, made.mean_pixel, stall=limit)
    assert codes == [75]
    said = capfd.readouterr().err
    assert "error: config.train.stall_timeout=0.5: data set 'shapes', split 'val', batch 0: no batch" in said


def test_a_killed_data_worker_is_an_error(shapes_dir):
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


def test_file_errors_outside_the_run_directory_are_left_alone(tmp_path):
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
            (path,) = (root / "tests").rglob(file or "-")
            assert f"def {name}(" in path.read_text(), row
