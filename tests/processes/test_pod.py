"""`launch/local_pod.py`: two processes train, one signal stops both after one save, the same goes on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
STEPS = 12


@pytest.fixture
def pod(shapes_dir, tmp_path, user_env):
    """Starts a pod of two processes with one device each on the tiny FCN; further arguments as given."""
    started = []

    def start(*more, **options):
        command = [sys.executable, "launch/local_pod.py", "--processes", "2", "--devices", "1", "--"]
        command += ["--config", "configs/demo.py:tiny,method=fcn", "--workdir", str(tmp_path / "run")]
        command += [f"--config.data.data_dir={shapes_dir}", f"--config.train.steps={STEPS}"]
        command += ["--config.checkpoint.every=100", "--config.eval.overlays=1", *more]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, cwd=ROOT, env=user_env, **pipes, **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def child(pod, number):
    """The process id of one of a pod's processes."""
    children = Path(f"/proc/{pod.pid}/task/{pod.pid}/children").read_text().split()
    flag = f"--process={number}"
    return next(int(c) for c in children if flag in Path(f"/proc/{c}/cmdline").read_text().split("\0"))


def saved_steps(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
def test_a_signal_to_one_process_stops_all_after_one_save(pod, tmp_path):
    first = pod()
    lines = []
    for line in first.stdout:
        lines.append(line)
        if line.startswith("[0] step 2/"):
            os.kill(child(first, 1), signal.SIGTERM)
    assert first.wait(timeout=120) == 128 + signal.SIGTERM, "".join(lines)
    stops = [line for line in lines if "stopped by SIGTERM at step" in line]
    assert len(stops) == 1 and stops[0].startswith("[0] ")
    step = int(stops[0].split("at step ")[1].split(";")[0])
    assert 2 <= step < STEPS
    assert saved_steps(tmp_path / "run") == [step]

    output, _ = pod().communicate(timeout=300)
    assert f"resumed from the checkpoint of step {step}" in output
    assert f"[0] finished at step {STEPS}" in output and "[1] finished" not in output
    assert saved_steps(tmp_path / "run") == [step, STEPS]


def test_processes_with_other_configs_are_refused(user_env, tmp_path, free_port):
    """Each would wait for the other for ever, or train something that is neither."""
    command = [
        sys.executable,
        "-m",
        "hfgd_jax.main",
        "--config=configs/demo.py:tiny",
        f"--workdir={tmp_path}",
    ]
    command += [f"--coordinator=127.0.0.1:{free_port()}", "--processes=2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [
        subprocess.Popen(
            [*command, f"--process={i}", f"--config.train.seed={i}"], cwd=ROOT, env=user_env, **pipes
        )
        for i in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [2, 2], errors
    for error in errors:
        assert "error: --config: processes [1] have another one than process 0" in error
    assert not list(tmp_path.iterdir())
