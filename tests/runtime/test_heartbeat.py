"""The heartbeat: silent while things move, and the end of a process in which nothing does."""

import signal
import subprocess
import sys
import textwrap
import time

import pytest

from hfgd_jax.runtime.heartbeat import Heartbeat

# A training whose third step never comes back, as when a device or another process hangs. Its steps are
# played; the rest is real. Up to the first step it may take its time.
STUCK = """
    import sys, threading, time
    from hfgd_jax import config as configuration
    from hfgd_jax.runtime.signals import Stop
    from hfgd_jax.training.loop import Loop

    def never_ends(*_):
        threading.Event().wait()

    def slow_compile(batch):
        time.sleep(3.5)
        print("compiled", flush=True)
        return lambda state, batch: (state, {"loss": 1.0, "gradient_norm": 1.0})

    config = configuration.default()
    configuration.set_tiny(config)
    config.model.update({"context": "identity", "upsampler": "none", "output_stride": 32})
    config.data.data_dir = sys.argv[2]
    config.update_from_flattened_dict({"train.heartbeat": 3.0, "checkpoint.every": 1, "mesh.data": 1})
    loop = Loop(config, sys.argv[1], Stop())
    read = loop._read

    def stuck_read(step, *rest):
        never_ends() if step == 3 else read(step, *rest)

    loop._compile, loop._read = slow_compile, stuck_read
    loop.run()
"""


def script(code, *arguments):
    return [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]


def test_a_stuck_training_is_ended_with_the_stacks_of_its_threads(tmp_path, shapes_dir, user_env):
    result = subprocess.run(
        script(STUCK, tmp_path, shapes_dir), capture_output=True, text=True, env=user_env, timeout=240
    )
    assert result.returncode == 75, result.stderr
    assert "compiled" in result.stdout and "step 2/4" in result.stdout
    assert "error: config.train.heartbeat=3: nothing has moved" in result.stderr
    written = (tmp_path / "stuck_process_0.txt").read_text()
    for text in (result.stderr, written):
        assert "in never_ends" in text and "in stuck_read" in text and "heartbeat.py" in text
    # What was saved before stays, and the same command goes on from it.
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} >= {"1"}


WATCHED = """
    import sys, time
    from hfgd_jax.runtime.heartbeat import Heartbeat

    with Heartbeat(0.6, sys.argv[1]) as heart:
        print("started", flush=True)
        for _ in range(8):
            time.sleep(0.15)
            heart.beat()
        with heart.paused():
            with heart.paused():
                time.sleep(0.5)
            time.sleep(1.0)
        time.sleep(0.3)
    time.sleep(1.0)
    print("left", flush=True)
"""


def test_beats_pauses_and_a_stopped_process_are_no_reason_to_end(tmp_path, user_env):
    process = subprocess.Popen(script(WATCHED, tmp_path), stdout=subprocess.PIPE, text=True, env=user_env)
    assert process.stdout.readline() == "started\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    process.send_signal(signal.SIGCONT)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "left\n")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("seconds", [0.0, 0.05])
def test_off_or_left_it_ends_nothing(seconds, tmp_path):
    with Heartbeat(seconds, tmp_path) as heart, heart.paused():
        time.sleep(0.2)
    time.sleep(0.2)
    assert not heart._thread.is_alive()
