"""Runs that are killed or stopped, as real processes, end like one left alone."""

import json
import random
import re
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from hfgd_jax import config as configuration
from hfgd_jax.runs.checkpoints import Checkpoints
from hfgd_jax.runs.system import build, make_init


def start(workdir, shapes_dir, env):
    command = [sys.executable, "-m", "hfgd_jax.main", "--config=configs/demo.py:tiny,method=fcn"]
    command += [
        f"--workdir={workdir}",
        f"--config.data.data_dir={shapes_dir}",
        "--config.mesh.data=1",
        "--config.train.steps=12",
    ]
    command += ["--config.checkpoint.every=3", "--config.eval.every=5"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


def final_state(workdir, step=12):
    config = configuration.from_json((workdir / "config.json").read_text())
    state = jax.eval_shape(make_init(build(config)), jax.random.PRNGKey(0))
    saved = Checkpoints(workdir, read_only=True)
    return jax.device_get(saved.restore(step, state.model, state.training))


def lines_until(process, wanted):
    for line in process.stdout:
        if wanted(line):
            return line
    raise AssertionError(f"the run ended (exit {process.wait()}) before the line came")


@pytest.mark.slow
def test_of_two_starts_in_one_run_directory_one_finishes_and_one_is_refused(shapes_dir, tmp_path, user_env):
    for attempt in range(3):
        workdir = tmp_path / str(attempt)
        first = start(workdir, shapes_dir, user_env)
        time.sleep(1)
        began, second = time.monotonic(), start(workdir, shapes_dir, user_env)
        outputs = {}
        for process in (second, first):
            outputs[process], _ = process.communicate(timeout=300)
            took = time.monotonic() - began
            if process.returncode == 2:
                assert "another training writes there: process " in outputs[process] and took < 60
        assert sorted((first.returncode, second.returncode)) == [0, 2], outputs
        assert not (workdir / "lease.json").exists()
        final_state(workdir)


@pytest.mark.slow
def test_ctrl_c_at_any_moment_is_answered_at_once_and_the_run_goes_on(shapes_dir, tmp_path, user_env):
    began = time.monotonic()
    output, _ = start(tmp_path / "whole", shapes_dir, user_env).communicate(timeout=300)
    length, run, saved = time.monotonic() - began, 0, None
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    for moment in [rng.uniform(0.5, length) for _ in range(6)]:
        process = start(tmp_path / str(run), shapes_dir, user_env)
        lines, sent = [], None
        reader = threading.Thread(
            target=lambda out, to: to.extend((time.monotonic(), line) for line in out),
            args=(process.stdout, lines),
        )
        reader.start()
        time.sleep(moment)
        if process.poll() is None:
            sent = time.monotonic()
            process.send_signal(signal.SIGINT)
        code = process.wait(timeout=60)
        reader.join()
        output = "".join(line for _, line in lines)
        where = f"seed {seed}, {moment:.1f} of {length:.1f} s\n{output}"
        if saved is not None and "weights: " in output:
            assert f"weights: resumed from the checkpoint of step {saved}\n" in output, where
        if code == 0:  # over before the signal came, or so near its end that there was nothing to stop
            assert "finished at step 12" in output, where
            run, saved = run + 1, None
            continue
        assert code == 130, where
        answered = next((when for when, line in lines if "SIGINT" in line), None)
        assert answered is not None and answered - sent < 2.0, where
        if said := re.search(r"stopped by SIGINT at step (\d+); saved", output):
            saved = int(said[1])


@pytest.mark.slow
def test_killed_and_stopped_runs_end_like_an_undisturbed_one(shapes_dir, tmp_path, user_env):
    whole = start(tmp_path / "whole", shapes_dir, user_env)
    broken = tmp_path / "broken"
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    output, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, output

    killed_at = rng.randrange(1, 12)
    process = start(broken, shapes_dir, user_env)
    lines_until(process, lambda line: line.startswith(f"step {killed_at}/"))
    time.sleep(rng.random() * 0.2)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)

    process = start(broken, shapes_dir, user_env)
    lines_until(process, lambda line: line.startswith(("step ", "finished")))
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode in (128 + signal.SIGTERM, 0), output
    if process.returncode:
        assert "stopped by SIGTERM at step" in output
        process = start(broken, shapes_dir, user_env)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output

    try:
        jax.tree.map(np.testing.assert_array_equal, final_state(tmp_path / "whole"), final_state(broken))
        assert (tmp_path / "whole" / "metrics.json").read_text() == (broken / "metrics.json").read_text()
        steps = [json.loads(x)["step"] for x in (broken / "metrics.jsonl").read_text().splitlines()]
        assert steps == sorted(steps)
        assert set(range(1, 13)) == set(steps)
    except AssertionError as error:
        raise AssertionError(f"killed at step {killed_at} (seed {seed})") from error
