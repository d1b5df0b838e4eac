"""launch/local_pod.py: the processes that it starts, ends and restarts. Small children stand for training."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launchers import LAUNCH, load, main_flags, run

pod = load("local_pod")
POD = [sys.executable, str(LAUNCH / "local_pod.py")]


def _run(*children, grace=5.0, **more):
    """The exit code and seconds of a pod whose processes run these Python texts."""
    start = time.monotonic()
    code = pod.Pod(grace).run([[sys.executable, "-u", "-c", child] for child in children], more)
    return code, time.monotonic() - start


def test_dry_run_prints_commands_of_one_pod():
    rest = ["--config", "configs/demo.py:method=sfpn,tiny", "--workdir", "runs/a pod"]
    code, out, _ = run(*POD, "--processes", "3", "--devices", "4", "--dry-run", "--", *rest)
    commands = [shlex.split(line) for line in out.splitlines()]
    assert code == 0 and len(commands) == 3
    for words in commands:
        settings = dict(word.split("=", 1) for word in words[:3])
        assert settings["JAX_PLATFORMS"] == "cpu" and words[3] == sys.executable
        assert settings["XLA_FLAGS"] == "--xla_force_host_platform_device_count=4"
    flags = main_flags(*commands)
    assert [f["process"] for f in flags] == [0, 1, 2]
    assert {f["processes"] for f in flags} == {3} and {f["expect_devices"] for f in flags} == {12}
    assert len({f["coordinator"] for f in flags}) == 1 and flags[0]["coordinator"].startswith("127.0.0.1:")
    assert {f["workdir"] for f in flags} == {"runs/a pod"}


def test_device_count_replaces_that_of_the_environment():
    flags = "--xla_a=1 --xla_force_host_platform_device_count=8 --xla_b=2"
    more = pod.environment({"XLA_FLAGS": flags}, 3)
    assert more["XLA_FLAGS"].split() == [
        *("--xla_a=1", "--xla_b=2"),
        "--xla_force_host_platform_device_count=3",
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--processes", "0", "--", "x"], "--processes: 0: want a whole number from 1"),
        (["--devices", "two", "--", "x"], "--devices: two: want a whole number from 1"),
        (["--restarts", "-1", "--", "x"], "--restarts: -1: want a whole number from 0"),
        (["--processes", "2"], "put hfgd_jax.main's flags after --"),
        (["--procs", "2", "--", "x"], "unrecognized arguments: --procs"),
    ],
)
def test_wrong_options_are_errors(words, told, capsys):
    with pytest.raises(SystemExit) as ended:
        pod.parse(words)
    assert ended.value.code == 2 and told in capsys.readouterr().err


def test_worst_exit_code():
    assert pod.worst([0, 0]) == 0 and pod.worst([0, 143]) == 143 and pod.worst([130, 1]) == 1
    assert pod.worst([134, 2]) == 2 and pod.worst([0, 75, 130]) == 75
    assert [code for code in (0, 1, 2, 75, 130, 134, 137, 143) if pod.restartable(code)] == [1, 75, 134, 137]


def test_lines_carry_their_process(capfd):
    child = "import os, sys; print('hello', os.environ['WHO']); print('oops', file=sys.stderr)"
    assert _run(child, child, WHO="me")[0] == 0
    out, err = capfd.readouterr()
    assert sorted(out.splitlines()) == ["[0] hello me", "[1] hello me"]
    assert sorted(err.splitlines()) == ["[0] oops", "[1] oops"]


def _state(process):
    return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_when_one_process_dies_the_others_and_their_workers_are_ended(tmp_path):
    note = tmp_path / "worker"
    patient = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"  # as one that waits for the dead one does
        "worker = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(note)!r}, 'w').write(str(worker.pid))\n"
        "time.sleep(60)\n"
    )
    failing = (
        f"import os, time\nwhile not os.path.exists({str(note)!r}) or not open({str(note)!r}).read():\n"
        "    time.sleep(0.01)\nos._exit(7)"
    )
    code, seconds = _run(patient, failing, grace=0.3)
    assert code == 7 and seconds < 30
    for _ in range(100):  # init may take a moment to fetch the orphan
        with contextlib.suppress(FileNotFoundError):
            if _state(note.read_text()) != "Z":
                time.sleep(0.05)
                continue
        break
    else:
        pytest.fail("the worker still runs")


def test_a_killed_process_is_a_crash_and_the_others_get_time_to_end():
    assert _run("import os; os.kill(os.getpid(), 9)", "import time; time.sleep(60)")[0] == 137
    code, seconds = _run(
        "raise SystemExit(143)", "import time; time.sleep(0.7); raise SystemExit(143)", grace=0
    )
    assert code == 143 and seconds > 0.6


def _standing(folder, script, *options):
    """local_pod.py in a process of its own, with a package `hfgd_jax.main` that does what `script` says."""
    package = folder / "hfgd_jax"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "main.py").write_text(script)
    return subprocess.Popen(
        [*POD, *options, "--", "--x=1"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_passed_to_all_processes_once(tmp_path, number):
    script = (
        "import signal, time\n"
        "seen = []\n"
        f"signal.signal({int(number)}, lambda n, f: seen.append(n))\n"
        "print('ready')\n"
        "while not seen: time.sleep(0.01)\n"
        "time.sleep(0.2)\n"
        "print('saw', len(seen))\n"
        "raise SystemExit(128 + seen[0])\n"
    )
    started = _standing(tmp_path, script, "--processes=2", "--restarts=3")
    lines = [started.stdout.readline() for _ in range(2)]
    assert sorted(lines) == ["[0] ready\n", "[1] ready\n"]
    started.send_signal(number)
    rest, _ = started.communicate(timeout=30)
    assert sorted(rest.splitlines()) == ["[0] saw 1", "[1] saw 1"]
    assert started.returncode == 128 + number


def test_crashes_are_restarted_and_user_errors_are_not(tmp_path):
    script = (
        "import os, pathlib, sys\n"
        "me = next(a for a in sys.argv if a.startswith('--process='))\n"
        "tries = pathlib.Path(me)\n"
        "done = len(tries.read_text()) if tries.exists() else 0\n"
        "tries.write_text('x' * (done + 1))\n"
        "raise SystemExit([1, 75, 2, 0][done] if me == '--process=1' else 0)\n"
    )
    started = _standing(tmp_path, script, "--processes=2", "--restarts=9")
    out, _ = started.communicate(timeout=60)
    assert started.returncode == 2
    assert [line for line in out.splitlines() if line.startswith("local_pod")] == [
        "local_pod: restart 1 of 9 after exit code 1",
        "local_pod: restart 2 of 9 after exit code 75",
    ]
    assert (tmp_path / "--process=1").read_text() == "xxx"
