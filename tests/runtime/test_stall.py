"""The stall limit: it ends a process that waits too long, and no other."""

import signal
import subprocess
import sys
import textwrap
import time

import pytest

from hfgd_jax.runtime.stall import StallLimit

# A training whose third step never comes back, as when a device or another process hangs. The steps are
# stand-ins; the rest is real. Compiling takes longer than the limit.
STUCK = """
    import sys, threading, time
    from hfgd_jax import config as configuration
    from hfgd_jax.runtime.signals import Stop
    from hfgd_jax.training.loop import Loop

    class NeverDone(float):
        def __float__(self):
            threading.Event().wait()

    def slow_compile(batch):
        time.sleep(7)
        print("compiled", flush=True)
        return step

    def step(state, batch):
        steps.append(1.0 if len(steps) < 2 else NeverDone())
        return state, {"loss": steps[-1], "gradient_norm": 1.0}

    steps = []
    config = configuration.default()
    configuration.set_tiny(config)
    config.model.update({"context": "identity", "upsampler": "none", "output_stride": 32})
    config.data.data_dir = sys.argv[2]
    config.update_from_flattened_dict({"train.stall_timeout": 6.0, "checkpoint.every": 2, "mesh.data": 1})
    loop = Loop(config, sys.argv[1], Stop())
    loop._compile = slow_compile
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
    assert "error: config.train.stall_timeout=6: step 3: nothing has moved for so many" in result.stderr
    written = (tmp_path / "stuck_process_0.txt").read_text()
    for text in (result.stderr, written):
        assert "in __float__" in text and "in _read" in text and "stall.py" in text
    # What was saved before stays, and the same command goes on from it.
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"2"}


# Many short waits, a background task that ends, and a pause without any limit.
WATCHED = """
    import sys, threading, time
    from hfgd_jax.runtime.stall import StallLimit

    with StallLimit(0.6, sys.argv[1]) as stall:
        saved = threading.Event()
        stall.watch("saving", saved.is_set)
        print("started", flush=True)
        for number in range(8):
            with stall.limit(f"step {number}"):
                time.sleep(0.15)
            if number == 1:
                saved.set()
        time.sleep(1.5)
        assert list(stall.batches(iter(range(1, 4)), "data")) == [1, 2, 3]
    time.sleep(1.0)
    print("left", flush=True)
"""


def test_short_waits_pauses_and_a_stopped_process_do_not_end_it(tmp_path, user_env):
    process = subprocess.Popen(script(WATCHED, tmp_path), stdout=subprocess.PIPE, text=True, env=user_env)
    assert process.stdout.readline() == "started\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    process.send_signal(signal.SIGCONT)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "left\n")
    assert not any(tmp_path.iterdir())


HUNG = """
    import sys, threading
    from hfgd_jax.runtime.stall import StallLimit

    def hang():
        threading.Event().wait()
        yield

    with StallLimit(0.5, sys.argv[1]) as stall:
        threading.Thread(target=threading.Event().wait).start()  # an orderly exit would wait for it
        next(stall.batches(hang(), "data set 'x', split 'val'", 7))
"""


def test_a_thread_that_hangs_does_not_keep_a_process_from_ending(tmp_path, user_env):
    command = script(HUNG, tmp_path / "missing")
    result = subprocess.run(command, capture_output=True, text=True, env=user_env, timeout=60)
    assert result.returncode == 75
    assert result.stderr.startswith(
        "error: config.train.stall_timeout=0.5: data set 'x', split 'val', batch 7: no batch for so many"
    )


@pytest.mark.parametrize("seconds", [0.0, 0.05])
def test_without_a_limit_or_after_the_block_nothing_ends(seconds, tmp_path):
    with StallLimit(seconds, tmp_path) as stall:
        stall.watch("saving", lambda: seconds > 0)
        time.sleep(0.2)
    with stall.limit("left"):
        time.sleep(0.2)
    assert not any(tmp_path.iterdir())
