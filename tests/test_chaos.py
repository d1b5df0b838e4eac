"""One run of two processes, killed thirty times, ends like an undisturbed one, bit for bit, by itself.

Every restart is the same command. Kills: both processes at any moment (starting and compiling too), in the
midst of a save, in the midst of an evaluation, one process of the two (the other must end by itself), and
SIGTERM to one (both save and end). `HFGD_CHAOS_SEED` repeats an order of kills; their moments are the
machine's.
"""

import collections
import json
import os
import queue
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

KILLS = 30
STEPS, SAVE_EVERY, EVALUATE_EVERY = 160, 2, 5  # on a busy machine a kill comes some 30 steps late
END = 120.0  # seconds that a process may take to end once the other is gone, or after SIGTERM


class Pod:
    """Two processes of one run; the lines of the first."""

    def __init__(self, workdir, data_dir, port, env):
        command = [sys.executable, "-m", "hfgd_jax.main", "--config=configs/demo.py:tiny,method=fcn"]
        command += [f"--workdir={workdir}", f"--config.data.data_dir={data_dir}", "--processes=2"]
        command += [f"--coordinator=localhost:{port}", f"--config.train.steps={STEPS}"]
        command += [
            "--config.eval.overlays=0",
            f"--config.checkpoint.every={SAVE_EVERY}",
            f"--config.eval.every={EVALUATE_EVERY}",
        ]
        self.processes = [
            subprocess.Popen(
                [*command, f"--process={i}"],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=env,
            )
            for i in (0, 1)
        ]
        self.output = [[], []]  # lines
        self.lines = queue.Queue()  # of process 0, as they come
        for i in (0, 1):
            threading.Thread(target=self._pump, args=(i,), daemon=True).start()

    def _pump(self, i):
        for line in self.processes[i].stdout:
            self.output[i].append(line)
            if i == 0:
                self.lines.put(line)

    def next_step(self, timeout):
        """The next step that process 0 prints, None where it ends, or the time runs out, before that."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            try:
                found = re.match(r"step (\d+)/", self.lines.get(timeout=0.05))
            except queue.Empty:
                if self.processes[0].poll() is not None:
                    return None
                continue
            if found:
                return int(found[1])
        return None

    def signal(self, number, *which):
        for i in which or (0, 1):
            if self.processes[i].poll() is None:
                self.processes[i].send_signal(number)

    def wait(self, timeout=END):
        """The exit codes; raises where a process does not end by itself."""
        until = time.monotonic() + timeout
        try:
            return [p.wait(timeout=max(until - time.monotonic(), 0.1)) for p in self.processes]
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            raise AssertionError(f"a process did not end by itself:\n{self.tail()}") from None

    def tail(self):
        return "\n--\n".join("".join(lines[-15:]) for lines in self.output)


def disturb(pod, kind, rng, workdir):
    """Does one kill; returns what to note of it."""
    if kind == "start":
        time.sleep(rng.uniform(0.5, 12.0))
        pod.signal(signal.SIGKILL)
        return "while starting" if not any("step" in line for line in pod.output[0]) else "after starting"
    step = pod.next_step(300)
    assert step is not None and step < STEPS, f"the run was not there to be killed:\n{pod.tail()}"
    goal = step + rng.randrange(0, 3)
    if kind == "evaluation":
        goal = -(-goal // EVALUATE_EVERY) * EVALUATE_EVERY
    while step is not None and step < goal:
        step = pod.next_step(60)
    if kind == "save":
        until = time.monotonic() + 30
        while time.monotonic() < until and pod.processes[0].poll() is None:
            if any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")):
                break
            time.sleep(0.001)
        pod.signal(signal.SIGKILL)
        left = [p.name for p in (workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")]
        return f"at step {step}, left {left}" if left else f"at step {step}, none left"
    time.sleep(rng.uniform(0.0, 0.3))
    if kind == "evaluation":
        pod.signal(signal.SIGKILL)
        done = any(line.startswith(f"evaluation at step {goal}:") for line in pod.output[0])
        return f"at step {goal}, {'over' if done else 'under way'}"
    if kind == "one":
        which = rng.randrange(2)
        pod.signal(signal.SIGKILL, which)
        return f"process {which} at step {step}"
    if kind == "term":
        which = rng.randrange(2)
        pod.signal(signal.SIGTERM, which)
        return f"process {which} at step {step}"
    pod.signal(signal.SIGKILL)
    return f"at step {step}"


def final_state(workdir):
    config = configuration.from_json((workdir / "config.json").read_text())
    state = jax.eval_shape(make_init(build(config)), jax.random.PRNGKey(0))
    saved = Checkpoints(workdir, read_only=True)
    assert saved.latest_step() == STEPS
    return jax.device_get(saved.restore(STEPS, state.model, state.training))


@pytest.mark.slow
def test_thirty_kills_change_nothing(shapes_dir, tmp_path, user_env, free_port):
    seed = int(os.environ.get("HFGD_CHAOS_SEED", random.SystemRandom().randrange(2**32)))
    rng = random.Random(seed)
    env = user_env | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    kinds = ["start", "any", "save", "evaluation", "one", "term"] * (KILLS // 6)
    rng.shuffle(kinds)
    broken, whole, notes = tmp_path / "broken", tmp_path / "whole", []
    print(f"seed {seed}")
    begun = time.monotonic()

    pod = Pod(whole, shapes_dir, free_port(), env)
    assert pod.wait(900) == [0, 0], pod.tail()
    print(f"left alone: {time.monotonic() - begun:.0f} s", flush=True)

    port = free_port()
    for number, kind in enumerate(kinds):
        pod = Pod(broken, shapes_dir, port, env)
        what = disturb(pod, kind, rng, broken)
        at = time.monotonic()
        codes = pod.wait()
        notes.append((kind, what))
        print(
            f"{time.monotonic() - begun:5.0f} s  kill {number + 1}: {kind} {what}; ended {codes} after "
            f"{time.monotonic() - at:.1f} s",
            flush=True,
        )
        if kind == "term":
            assert codes == [143, 143], pod.tail()
        elif kind == "one":  # what a supervisor starts again
            assert not {0, 2, 130, 143} & set(codes), pod.tail()
    pod = Pod(broken, shapes_dir, port, env)
    assert pod.wait(900) == [0, 0], pod.tail()

    counts = collections.Counter(kind for kind, _ in notes)
    assert set(counts.values()) == {KILLS // 6}
    assert any("left [" in what for _, what in notes), "no save was hit"
    assert any("under way" in what for _, what in notes), "no evaluation was hit"
    jax.tree.map(np.testing.assert_array_equal, final_state(whole), final_state(broken))
    assert (whole / "metrics.json").read_text() == (broken / "metrics.json").read_text()
    for workdir in (whole, broken):
        records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        steps = [r["step"] for r in records]
        assert steps == sorted(steps) and set(steps) == set(range(1, STEPS + 1))
        evaluated = [r["step"] for r in records if "mIoU" in r]
        assert evaluated == list(range(EVALUATE_EVERY, STEPS + 1, EVALUATE_EVERY))
    assert not (broken / "damaged").exists()
    losses = [
        {
            r["step"]: r["loss"]
            for r in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
            if "loss" in r
        }
        for workdir in (whole, broken)
    ]
    assert losses[0] == losses[1]
