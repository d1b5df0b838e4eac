"""launch/on_host.sh and slurm.sbatch, run for real; a small script stands for Python."""

import os
import shlex
import subprocess
import time
from pathlib import Path

import pytest
from launchers import LAUNCH, main_flags, run

HOST = ["bash", LAUNCH / "on_host.sh"]


def _script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def host(tmp_path):
    """Settings of a host of its own, whose Python does what `does` is given."""
    settings = {
        "STATE": str(tmp_path / "state"),
        "LIBTPU_LOCKFILE": str(tmp_path / "lock"),
        "RESTART_PAUSE": "0",
        "CHIP_TIMEOUT": "0",
        "PYTHON": str(tmp_path / "python"),
    }

    def does(text):
        _script(tmp_path / "python", text)
        return settings

    return does


def _code(settings):
    return int((Path(settings["STATE"]) / "exit_code").read_text())


def _wait(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("it never happened")


def test_run_passes_the_flags_to_main(host, tmp_path):
    env = host(f'printf "%s\\n" "$@" >{tmp_path}/words; pwd >{tmp_path}/place')
    code, _, err = run(*HOST, "run", "--", "--config=configs/demo.py", "--workdir=/a b", **env)
    assert code == 0 and _code(env) == 0, err
    words = (tmp_path / "words").read_text().splitlines()
    assert words == ["-u", "-m", "hfgd_jax.main", "--config=configs/demo.py", "--workdir=/a b"]
    assert (tmp_path / "place").read_text().strip() == str(LAUNCH.parent)  # where `configs/` is


@pytest.mark.parametrize(("codes", "tries"), [("1 75 0", 3), ("2 0", 1), ("143 0", 1), ("1 1 1 1", 3)])
def test_only_crashes_are_restarted(host, tmp_path, codes, tries):
    count = tmp_path / "count"
    env = host(f'echo x >>{count}; set -- {codes}; n=$(wc -l <{count}); exit "${{!n}}"')
    code, _, _ = run(*HOST, "run", "--", "--x", RESTARTS="2", **env)
    assert count.read_text().count("x") == tries
    assert code == _code(env) == int(codes.split()[tries - 1])


def test_start_is_detached_and_stop_waits_for_the_save(host, tmp_path):
    saving = f"sleep 0.5; echo saved >{tmp_path}/saved; exit 143"
    env = host(f"trap '{saving}' TERM; echo up; while :; do sleep 0.05; done")
    code, out, err = run(*HOST, "start", "--", "--x", **env)
    assert code == 0 and "running, process" in out, err
    log = Path(env["STATE"]) / "log"
    _wait(lambda: "up" in log.read_text())
    code, _, err = run(*HOST, "start", "--", "--x", **env)
    assert code == 2 and "a run is under way here" in err
    code, out, _ = run(*HOST, "stop", **env)
    assert code == 0 and "not running, last exit code 143" in out and (tmp_path / "saved").exists()


def test_stop_kills_our_process_group_alone_after_the_timeout(host):
    other = subprocess.Popen(["sleep", "60"])
    env = host("trap '' TERM; echo $$; while :; do sleep 0.05; done")
    run(*HOST, "start", "--", "--x", **env)
    log = Path(env["STATE"]) / "log"
    _wait(lambda: log.read_text().strip())
    child = int(log.read_text().split()[0])
    code, out, _ = run(*HOST, "stop", STOP_TIMEOUT="1", **env)
    assert code == 0 and "by force" in out
    _wait(lambda: not Path(f"/proc/{child}").exists() or ") Z " in Path(f"/proc/{child}/stat").read_text())
    assert other.poll() is None
    other.kill()
    other.wait()


def test_a_reused_process_id_is_not_our_run(host):
    env = host("exit 0")
    stranger = subprocess.Popen(["sleep", "60"])
    Path(env["STATE"]).mkdir()
    (Path(env["STATE"]) / "pid").write_text(f"{stranger.pid} 1\n")
    code, out, _ = run(*HOST, "stop", **env)
    assert code == 0 and "not running" in out and stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_a_stale_lock_is_removed_and_a_held_one_stays(host):
    env = host("exit 0")
    lock = Path(env["LIBTPU_LOCKFILE"])
    lock.touch()
    with lock.open() as held:
        code, _, err = run(*HOST, "run", "--", "--x", RESTARTS="0", **env)
        assert code == 1 and lock.exists()
        assert f"{os.getpid()}: " in err and "the chips are in use" in err
        assert not held.closed
    code, out, _ = run(*HOST, "run", "--", "--x", **env)
    assert code == 0 and "which no process holds" in out and not lock.exists()


@pytest.mark.parametrize(("result", "left"), [(0, ["exit_code_0"]), (2, ["exit_code_2"]), (1, [])])
def test_the_exit_code_is_left_in_the_exit_folder(host, tmp_path, result, left):
    env = host(f"exit {result}")
    _script(
        tmp_path / "bin" / "gcloud", f'[[ "$1 $2 $3" == "storage cp -" ]] && touch "{tmp_path}/${{4##*/}}"'
    )
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    run(*HOST, "run", "--", "--x", RESTARTS="0", EXIT_FOLDER="gs://b/run/launch", PATH=path, **env)
    assert sorted(p.name for p in tmp_path.glob("exit_code_*")) == left


def test_data_is_copied_or_mounted(host, tmp_path):
    env = host("exit 0")
    for name in ("gcloud", "gcsfuse"):
        _script(tmp_path / "bin" / name, f'echo {name} "$@" >>{tmp_path}/calls')
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    more = {"PATH": path, "DATA_SOURCE": "gs://b/some/data", "DATA_DIR": str(tmp_path / "data")}
    assert run(*HOST, "data", **env, **more)[0] == 0
    assert run(*HOST, "data", DATA_HOW="mount", **env, **more)[0] == 0
    copy, mount = (tmp_path / "calls").read_text().splitlines()
    assert copy == f"gcloud storage rsync --recursive gs://b/some/data {tmp_path}/data"
    assert mount == f"gcsfuse -o ro --implicit-dirs --only-dir some/data b {tmp_path}/data"
    code, _, err = run(*HOST, "data", DATA_HOW="mail", **env, **more)
    assert code == 2 and err == "error: DATA_HOW=mail: want copy or mount\n"


SBATCH = ["bash", LAUNCH / "slurm.sbatch"]
TRAIN = ["--", "--config=configs/demo.py", "--config.eval.scales=(0.5, 1)"]


def test_slurm_dry_run_prints_the_command_of_the_job():
    code, out, err = run(*SBATCH, "--dry-run", *TRAIN, WORKDIR="/shared/a run", DATA_DIR="/d")
    assert code == 0, err
    submit, step = map(shlex.split, out.splitlines())
    assert submit[0] == "sbatch" and submit[-3:] == TRAIN
    assert step[0] == "srun" and "--kill-on-bad-exit=0" in step
    (flags,) = main_flags(step)
    assert flags["cluster"] == "slurm" and flags["workdir"] == "/shared/a run"
    assert flags["expect_devices"] == 8 and step[-1] == "--config.data.data_dir=/d"


def test_slurm_options_of_the_script():
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    asked = dict(
        line.split()[1].lstrip("-").partition("=")[::2] for line in lines if line.startswith("#SBATCH")
    )
    assert asked["signal"] == "TERM@180" and "requeue" in asked and asked["open-mode"] == "append"
    assert asked["ntasks-per-node"] == asked["gpus-per-node"] and "gpus-per-task" not in asked


@pytest.mark.parametrize(
    ("result", "left", "restarts", "again"),
    [
        (0, 9999, 0, False),
        (2, 9999, 0, False),
        (1, 9999, 0, True),
        (75, 9999, 2, True),
        (1, 9999, 3, False),
        (143, 100, 9, True),
        (143, 9999, 0, False),
    ],
)
def test_slurm_jobs_queue_themselves_again(tmp_path, result, left, restarts, again):
    _script(tmp_path / "srun", f'echo "$@" >{tmp_path}/step; exit {result}')
    _script(tmp_path / "scontrol", f'echo "$@" >{tmp_path}/again')
    job = {
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_RESTART_COUNT": str(restarts),
        "SLURM_JOB_END_TIME": str(int(time.time()) + left),
    }
    more = {"WORKDIR": "/w", "PYTHON": "/bin/true", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    code, _, err = run(*SBATCH, *TRAIN, cwd=tmp_path, **job | more)
    assert code == result, err
    assert "--expect_devices=8" in (tmp_path / "step").read_text()
    assert (tmp_path / "again").exists() == again
    if again:
        assert (tmp_path / "again").read_text() == "requeue 77\n"


@pytest.mark.parametrize(
    ("words", "env", "told"),
    [
        (TRAIN, {}, "WORKDIR is not set; for instance: export WORKDIR="),
        ([], {"WORKDIR": "/w"}, "put hfgd_jax.main's flags after --"),
        (TRAIN, {"WORKDIR": "/w"}, "no SLURM job here"),
        (TRAIN, {"WORKDIR": "/w", "SLURM_JOB_ID": "1", "PYTHON": "/no/python"}, "PYTHON=/no/python"),
    ],
)
def test_slurm_mistakes_are_one_line_and_exit_code_2(words, env, told):
    code, _, err = run(*SBATCH, *words, **env)
    assert code == 2 and err.count("\n") == 1 and told in err
