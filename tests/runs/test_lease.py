"""The lease of a run directory: who has it, who is refused, and who may take it over."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from hfgd_jax.errors import UserError
from hfgd_jax.runs import lease as leases
from hfgd_jax.runs.lease import NAME, Lease

ELSEWHERE = {"machine": "another", "host": "far", "process": 7, "started": "1", "since": "2026", "token": "x"}

HOLD = """
import sys, time
from hfgd_jax.runs.lease import Lease
with Lease(sys.argv[1], renew=0.2):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run directory; what settles in seconds does so in a tenth of one."""
    monkeypatch.setattr(leases, "_SETTLE", 0.1)
    return tmp_path / "run"


@pytest.fixture
def lines():
    return []


@pytest.fixture
def held(run, user_env):
    """A process that has the lease."""
    with subprocess.Popen([sys.executable, "-c", HOLD, run], stdout=subprocess.PIPE, env=user_env) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def owner(run):
    return json.loads((run / NAME).read_text())


def test_it_is_held_and_renewed_for_the_time_of_the_block(run, lines):
    with Lease(run, lines.append, renew=0.05):
        first = owner(run)
        assert first["process"] == os.getpid()
        with pytest.raises(
            UserError, match=rf"run: another training writes there: process {os.getpid()} on "
        ):
            Lease(run, lines.append).__enter__()
        while owner(run)["renewals"] < 2:
            time.sleep(0.05)
    assert not (run / NAME).exists() and not lines
    with Lease(run, lines.append):  # at once
        assert owner(run)["token"] != first["token"]


def test_a_living_process_keeps_it_and_a_killed_one_loses_it(held, run, lines):
    with pytest.raises(UserError, match=f"another training writes there: process {held.pid} on "):
        Lease(run, lines.append).__enter__()
    held.kill()
    while leases._start_of(held.pid):  # not waited for: a zombie is gone, too
        time.sleep(0.01)
    with Lease(run, lines.append):
        assert owner(run)["process"] == os.getpid()
    assert len(lines) == 1 and f"process {held.pid} on " in lines[0] and "takes its run over" in lines[0]


def test_another_process_of_the_same_number_is_not_the_owner(run, lines):
    with Lease(run, lines.append):
        old = owner(run) | {"started": "1", "token": "old"}
    (run / NAME).write_text(json.dumps(old))
    with Lease(run, lines.append):
        assert len(lines) == 1


def test_an_owner_elsewhere_is_watched(run, lines):
    run.mkdir()
    (run / NAME).write_text(json.dumps(ELSEWHERE))
    started = time.monotonic()
    with Lease(run, lines.append, renew=0.1, silence=0.5):
        assert 0.5 <= time.monotonic() - started < 5
    assert "held by process 7 on far, since 2026; waiting 0.5 s" in lines[0] and len(lines) == 2

    (run / NAME).write_text(json.dumps(ELSEWHERE))
    renewal = threading.Timer(0.3, (run / NAME).write_text, [json.dumps(ELSEWHERE | {"renewals": 1})])
    renewal.start()
    with pytest.raises(UserError, match="process 7 on far"):
        Lease(run, lines.append, renew=0.1, silence=5).__enter__()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"machine": 3}'])
def test_a_lease_that_cannot_be_read_is_taken_over(text, run, lines):
    run.mkdir()
    (run / NAME).write_text(text)
    with Lease(run, lines.append, renew=0.1, silence=0.2):
        assert owner(run)["process"] == os.getpid()
    assert "an unknown process" in lines[-1]


def test_of_many_that_take_over_at_once_one_has_it(run, lines, monkeypatch):
    monkeypatch.setattr(leases, "_SETTLE", 1.0)
    run.mkdir()
    (run / NAME).write_text(json.dumps(ELSEWHERE))
    outcomes, done = [], threading.Event()

    def start():
        try:
            with Lease(run, lines.append, renew=0.1, silence=0.2):
                outcomes.append("has it")
                done.wait()
        except UserError:
            outcomes.append("refused")

    threads = [threading.Thread(target=start) for _ in range(5)]
    for thread in threads:
        thread.start()
    while len(outcomes) < 5:
        time.sleep(0.05)
    done.set()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["has it", *["refused"] * 4]


def test_who_stood_still_while_another_took_it_over_ends(held, run):
    held.send_signal(signal.SIGSTOP)
    (run / NAME).write_text(json.dumps(ELSEWHERE))
    held.send_signal(signal.SIGCONT)
    assert held.wait(timeout=20) == 2
    assert json.loads((run / NAME).read_text()) == ELSEWHERE


def test_a_removed_run_directory_is_not_made_again(run, lines):
    with Lease(run, lines.append, renew=0.05):
        (run / NAME).unlink()
        run.rmdir()
        time.sleep(0.3)
        assert not run.exists()
