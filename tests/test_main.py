"""The commands as a user meets them: real processes, exit codes, one-line errors; every config, tiny."""

import json
import resource
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from hfgd_jax import main
from hfgd_jax.runs.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def call(user_env):
    """Runs the front door with these arguments; `limit` is called in the child before it starts."""

    def call(*arguments, limit=None):
        command = [sys.executable, "-m", "hfgd_jax.main", *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=300, env=user_env, preexec_fn=limit, check=False
        )

    return call


def refused(result):
    """The one line that a refused command ends with."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


TINY = "--config=configs/demo.py:tiny,method=sfpn"


def slow(*values):
    """A case that `make slow` runs."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def run(call, shapes_dir, tmp_path_factory):
    """A finished tiny run: (workdir, data_dir, what it printed)."""
    workdir = tmp_path_factory.mktemp("run") / "demo"
    result = call(TINY, f"--workdir={workdir}", f"--config.data.data_dir={shapes_dir}")
    assert result.returncode == 0, result.stderr
    return workdir, shapes_dir, result.stdout


def test_training_tells_what_it_does(run):
    workdir, _, text = run
    for part in (
        "devices: 1 x cpu",
        "batch: 2 global, 2 per device",
        "GMACs",
        "classes: 0 sky",
        "random weights",
    ):
        assert part in text
    assert "compiled the training step in" in text
    assert "step 4/4  loss " in text
    assert f"finished at step 4: {workdir}" in text


def test_eval_mode_takes_the_runs_own_config(call, run):
    workdir, _, _ = run
    result = call(f"--workdir={workdir}", "--mode=eval", "--checkpoint=best")
    assert result.returncode == 0, result.stderr
    summary = json.loads((workdir / "metrics.json").read_text())
    assert f"mIoU: {summary['mIoU']:.4f}" in result.stdout
    assert "pole" in result.stdout


def test_predict_mode(call, run, tmp_path):
    """Odd sizes, grey, RGBA and a file that is no image: the rest is finished, the exit code tells."""
    workdir, _, _ = run
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (101, 77, 3)).astype(np.uint8)).save(photos / "a.jpg")
    Image.fromarray(rng.integers(0, 255, (40, 60)).astype(np.uint8)).save(photos / "b.png")
    Image.fromarray(rng.integers(0, 255, (65, 33, 4)).astype(np.uint8)).save(photos / "c.png")
    (photos / "d.jpg").write_text("not an image")
    out = tmp_path / "out"
    result = call(f"--workdir={workdir}", "--mode=predict", f"--input={photos}", f"--output={out}")
    assert result.returncode == 1, result.stderr
    assert "d.jpg" in result.stdout + result.stderr
    masks = sorted((out / "masks").iterdir())
    assert [Image.open(m).size for m in masks] == [(77, 101), (60, 40), (33, 65)]
    assert all(np.asarray(Image.open(m)).max() < 9 for m in masks)
    # The same command again refuses to replace what is there.
    again = call(f"--workdir={workdir}", "--mode=predict", f"--input={photos}", f"--output={out}")
    assert "--overwrite" in refused(again)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([TINY, "--config.train.stepz=3"], "stepz"),
        ([TINY, "--config.train.steps=many"], "many"),
        ([TINY, "--config.data.dataset=camvid"], "hfgd_jax.tools.prepare --dataset camvid"),
        ([], "holds no run"),
        ([TINY, "--mode=predict"], "--input: needed with --mode=predict"),
        # In this process: test_config.py, test_loop.py.
        slow([TINY, "--config.model.upsampler=fpm"], "upsampler='fpm': unknown; one of none, sfpn, u_sfpn"),
        slow([TINY, "--config.model.backbone.weights=missing.safetensors"], "missing.safetensors"),
    ],
)  # fmt: skip
def test_wrong_input_is_refused_in_one_line(call, arguments, says, shapes_dir, tmp_path):
    more = [] if not arguments else [f"--config.data.data_dir={shapes_dir}"]
    assert says in refused(call(*arguments, f"--workdir={tmp_path / 'new'}", *more))


def test_a_config_is_printed_without_a_run_directory_and_nothing_else_goes_without(call, shapes_dir):
    done = call(TINY, "--print_config", "--config.train.steps=7")
    assert done.returncode == 0 and "config.train.steps = 7  (command line)" in done.stdout
    assert refused(call(TINY)) == "error: --workdir: needed"


def test_another_runs_workdir_is_refused(call, run):
    workdir, data, _ = run
    result = call(TINY, f"--workdir={workdir}", f"--config.data.data_dir={data}", "--config.train.seed=7")
    assert "train.seed: 0 -> 7" in refused(result)


def test_a_checkpoint_of_another_model_names_the_leaves(call, run):
    workdir, _, _ = run
    result = call(f"--workdir={workdir}", "--mode=eval", "--config.model.channels=8")
    line = refused(result)
    assert "of another model" in line
    assert "params/upsampler/out/norm/scale: saved (16,), wanted (8,)" in line


def test_a_missing_checkpoint_lists_those_there(call, run):
    workdir, _, _ = run
    result = call(f"--workdir={workdir}", "--mode=eval", "--checkpoint=3")
    assert "it holds steps [2, 4], best [4]" in refused(result)


@pytest.mark.slow
def test_a_full_disk_keeps_the_earlier_checkpoint(call, user_env, shapes_dir, tmp_path):
    """Files may not grow beyond 2 MB in the second process, as if the disk were full."""
    common = [
        "--config=configs/demo.py:tiny,method=fcn",
        f"--workdir={tmp_path}",
        f"--config.data.data_dir={shapes_dir}",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "hfgd_jax.main", *common, "--config.train.steps=30"],
        stdout=subprocess.PIPE,
        text=True,
        env=user_env,
    )
    for line in process.stdout:
        if line.startswith("step 5/"):
            process.terminate()
    process.wait(timeout=120)
    saved = Checkpoints(tmp_path, read_only=True).latest_step()
    assert saved and saved < 30

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))

    line = refused(call(*common, "--config.train.steps=30", limit=limit))
    assert "could not be written" in line
    assert f"still whole: [{saved - 1}, {saved}]" in line or str(saved) in line.split("still whole: ")[1]
    assert Checkpoints(tmp_path, read_only=True).latest_step() == saved
    result = call(*common, "--config.train.steps=30")
    assert result.returncode == 0, result.stderr
    assert f"resumed from the checkpoint of step {saved}" in result.stdout


@pytest.mark.parametrize(
    "config",
    [  # tiny, they differ in nothing from what `run` trains but by their names
        slow(f"{name}.py:without_data")
        for name in ("ade20k", "camvid", "cityscapes", "coco_stuff", "folder", "pascal_context")
    ]
    + [  # what their losses train is seen in tests/models/test_paper_rows.py
        slow(f"paper.py:{row},without_data")
        for row in (
            *("table6/swin_l_u_sfpn", "table9/sa_car_d8", "table9/hfgd_os2"),
            "table10/hfgd_os4_stronger",
        )
    ],
)
def test_every_config_trains_without_its_data(call, config, shapes_dir, tmp_path):
    arguments = [f"--config=configs/{config}", f"--workdir={tmp_path}", "--config.train.steps=2"]
    result = call(*arguments, f"--config.data.data_dir={shapes_dir}")
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "metrics.json").read_text())["step"] == 2


def test_the_saved_config_stands_in_for_a_missing_one():
    argv = ["main", "--workdir", "runs/x", "--mode=eval"]
    added = main.with_saved_config(argv)
    assert added[1].startswith("--config=")
    assert added[1].endswith("saved_config.py:runs/x")
    assert main.with_saved_config(["main", "--workdir=a", "--config", "c.py"]) == [
        "main",
        "--workdir=a",
        "--config",
        "c.py",
    ]
    assert main.with_saved_config(["main", "--mode=eval"]) == ["main", "--mode=eval"]
