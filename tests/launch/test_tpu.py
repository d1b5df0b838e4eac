"""launch/tpu_*.sh: what each dry run prints, what `watch` does with a gcloud of ours, and shellcheck."""

import os
import shlex
import sys
from pathlib import Path

import pytest
from launchers import LAUNCH, ROOT, main_flags, run

SETTINGS = {
    "TPU_NAME": "t",
    "ZONE": "us-west4-a",
    "ACCELERATOR_TYPE": "v5litepod-16",
    "RUNTIME_VERSION": "v2-alpha-tpuv5-lite",
    "WORKDIR": "gs://bucket/a run",
}
RUN = ["--config=configs/demo.py:method=sfpn,tiny", "--config.eval.scales=(0.5, 1)"]
SCRIPTS = ("tpu_vm.sh", "tpu_pod.sh", "tpu_queued.sh")


def _dry(script, command, *more, **env):
    """Commands of a dry run, as words; comments apart."""
    code, out, err = run("bash", LAUNCH / script, "--dry-run", command, *more, **SETTINGS | env)
    assert code == 0, err
    lines = out.splitlines()
    words = [shlex.split(line) for line in lines if not line.startswith("#")]
    return words, [line.removeprefix("#   ") for line in lines if line.startswith("#   ")]


def _started(line):
    """Settings and main's command of a host's line `... on_host.sh start -- ARGUMENTS`."""
    words = shlex.split(line)
    at = words.index("--")
    assert words[at - 2].endswith("launch/on_host.sh") and words[at - 1] == "start"
    settings = dict(word.split("=", 1) for word in words[: words.index("bash")])
    return settings, ["-m", "hfgd_jax.main", *words[at + 1 :]]


def test_shellcheck_finds_nothing():
    tool = Path(sys.executable).with_name("shellcheck")
    scripts = [*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")]
    assert len(scripts) == 6
    code, out, _ = run(tool, "--external-sources", "--source-path", ROOT, *scripts)
    assert code == 0, out


@pytest.mark.parametrize(("script", "worker"), [("tpu_vm.sh", "0"), ("tpu_pod.sh", "all")])
def test_up_creates_installs_and_starts(script, worker):
    data = {"DATA_SOURCE": "gs://bucket/data", "DATA_DIR": "/tmp/my data", "SPOT": "1", "PROJECT": "p"}
    commands, _ = _dry(script, "up", "--", *RUN, **data)
    gcloud = [c for c in commands if c[0] == "gcloud"]
    assert [c[4] for c in gcloud] == ["describe", "create", "scp", "ssh", "ssh"]
    for command in gcloud:
        assert command[:4] == ["gcloud", "compute", "tpus", "tpu-vm"]
        assert {"--zone=us-west4-a", "--project=p"} <= set(command)
    assert {"--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite", "--spot"} <= set(gcloud[1])
    for command in gcloud[2:]:
        assert f"--worker={worker}" in command
    install, start = (c[-1].removeprefix("--command=") for c in gcloud[3:])
    assert "on_host.sh install &&" in install and install.endswith("on_host.sh data")
    assert "DATA_DIR='/tmp/my data' " in install and "DATA_SOURCE=gs://bucket/data " in install
    settings, command = _started(start)
    assert settings["DATA_DIR"] == "/tmp/my data"
    (flags,) = main_flags(command)
    assert flags["workdir"] == "gs://bucket/a run" and flags["expect_devices"] == 16
    assert flags["cluster"] == "tpu"
    assert command[-3:] == [*RUN, "--config.data.data_dir=/tmp/my data"]


def test_archive_holds_what_a_host_needs():
    commands, _ = _dry("tpu_pod.sh", "install")
    (pack,) = (c for c in commands if c[0] == "tar")
    assert pack[1:3] == ["-C", str(ROOT)]
    packed = pack[6:]
    assert {"hfgd_jax", "configs", "launch", "constraints.txt", "pyproject.toml"} <= set(packed)
    for name in packed:
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize(
    ("type_", "devices"),
    [("v2-8", 8), ("v3-32", 32), ("v4-32", 16), ("v5p-128", 64), ("v5litepod-256", 256), ("v6e-64", 64)],
)
def test_devices_of_a_type(type_, devices):
    code, out, _ = run("bash", "-c", f"source {LAUNCH}/common.sh; devices_of {type_}")
    assert (code, out) == (0, f"{devices}\n")


def test_startup_script_installs_and_starts_at_every_boot():
    data = {"DATA_SOURCE": "gs://bucket/data", "DATA_DIR": "/data", "DATA_HOW": "mount", "RESTARTS": "9"}
    commands, script = _dry("tpu_queued.sh", "create", "--", *RUN, SPOT="1", **data)
    gcloud = [c for c in commands if c[0] == "gcloud"]
    create = gcloud[-1]
    assert create[:5] == ["gcloud", "compute", "tpus", "queued-resources", "create"]
    assert {"--node-id=t", "--spot", "--runtime-version=v2-alpha-tpuv5-lite"} <= set(create)
    upload = next(c for c in gcloud if c[1:3] == ["storage", "cp"])
    assert upload[-1] == "gs://bucket/a run/launch/code.tar.gz"
    assert script[0] == "#!/bin/bash" and f"gcloud storage cp '{upload[-1]}'" in "\n".join(script)
    assert [shlex.split(line)[-1] for line in script if "on_host.sh" in line][:2] == ["install", "data"]
    settings, command = _started(script[-1])
    assert settings["EXIT_FOLDER"] == "gs://bucket/a run/launch" and settings["RESTARTS"] == "9"
    assert settings["DATA_HOW"] == "mount"
    (flags,) = main_flags(command)
    assert flags["workdir"] == "gs://bucket/a run" and flags["expect_devices"] == 16


@pytest.mark.parametrize("script", SCRIPTS)
def test_dry_runs_touch_nothing(script, tmp_path):
    command = "watch" if script == "tpu_queued.sh" else "up"
    _dry(script, command, "--", *RUN, HOME=str(tmp_path), PATH="/usr/bin:/bin")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("name", SETTINGS)
def test_missing_settings_are_named(script, name):
    command = "create" if script == "tpu_queued.sh" else "up"
    env = {key: value for key, value in SETTINGS.items() if key != name}
    code, _, err = run("bash", LAUNCH / script, "--dry-run", command, "--", *RUN, **env)
    assert code == 2 and err.count("\n") == 1
    assert err.startswith(f"error: {name} is not set; for instance: export {name}=")


@pytest.mark.parametrize(
    ("script", "words", "env", "told"),
    [
        ("tpu_vm.sh", ["up"], {}, "put hfgd_jax.main's flags after --"),
        ("tpu_vm.sh", ["fly", "--", "x"], {}, "fly: want create,"),
        ("tpu_vm.sh", [], {}, "no command"),
        ("tpu_vm.sh", ["--config=x", "up"], {}, "--config=x: unknown option"),
        ("tpu_pod.sh", ["start", "--", "x"], {"WORKDIR": "runs/x"}, "WORKDIR=runs/x: all hosts"),
        ("tpu_pod.sh", ["start", "--", "x"], {"DATA_SOURCE": "/d"}, "DATA_SOURCE=/d: want gs://"),
        ("tpu_pod.sh", ["start", "--", "x"], {"DATA_SOURCE": "gs://d"}, "DATA_DIR is not set"),
        ("tpu_pod.sh", ["start", "--", "x"], {"ACCELERATOR_TYPE": "v5"}, "ACCELERATOR_TYPE=v5: want"),
        ("tpu_queued.sh", ["create", "--", "x"], {"WORKDIR": "/runs"}, "WORKDIR=/runs: the disk goes"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(script, words, env, told):
    code, _, err = run("bash", LAUNCH / script, "--dry-run", *words, **SETTINGS | env)
    assert code == 2 and err.count("\n") == 1 and told in err, err


@pytest.mark.parametrize("script", [*SCRIPTS, "on_host.sh", "slurm.sbatch"])
def test_help_is_the_head_of_the_file(script):
    code, out, _ = run("bash", LAUNCH / script, "--help")
    assert code == 0 and "Usage:" in out and "set -e" not in out and "#!" not in out


# A cloud of one queued resource: its state is a file, and so are the objects of its buckets.
GCLOUD = r"""#!/usr/bin/env bash
echo "$*" >>"$CLOUD/calls"
case "$*" in
    *"queued-resources describe"*)
        [[ -e $CLOUD/state ]] || exit 1
        read -r now code <"$CLOUD/state"
        echo "$now"
        [[ -z $code ]] || touch "$CLOUD/exit_code_$code"
        [[ $(wc -l <"$CLOUD/state") == 1 ]] || sed -i 1d "$CLOUD/state"
        ;;
    *"queued-resources create"*) [[ ! -e $CLOUD/state ]] && cp "$CLOUD/next" "$CLOUD/state" ;;
    *"queued-resources delete"*) mv "$CLOUD/state" "$CLOUD/gone" ;;
    "storage ls"*) [[ -e $CLOUD/${!###*/} ]] ;;
    "storage rm"*) rm "$CLOUD/${!###*/}" ;;
    "storage cp"*) [[ -s $3 ]] ;;
    *) exit 9 ;;
esac
"""


@pytest.fixture
def cloud(tmp_path):
    """Runs tpu_queued.sh against `GCLOUD`; gives its result and the resource's calls."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gcloud").write_text(GCLOUD)
    (tmp_path / "bin" / "gcloud").chmod(0o755)

    def call(*words, **env):
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        more = SETTINGS | {"HOME": str(tmp_path), "PATH": path, "CLOUD": str(tmp_path), "POLL": "0"} | env
        result = run("bash", LAUNCH / "tpu_queued.sh", *words, "--", *RUN, **more)
        calls = (tmp_path / "calls").read_text().splitlines()
        return result, [c.split()[3] for c in calls if "queued-resources" in c and "describe" not in c]

    call.folder = tmp_path
    return call


@pytest.mark.parametrize("code", [0, 2])
def test_watch_requests_suspended_capacity_again_and_ends_with_the_run(cloud, code):
    (cloud.folder / "state").write_text("ACTIVE\nSUSPENDING\nSUSPENDED\n")
    (cloud.folder / "next").write_text(f"PROVISIONING\nACTIVE\nACTIVE {code}\n")
    (found, out, err), calls = cloud("watch")
    assert found == code, err
    assert calls == ["delete", "create", "delete"] and not (cloud.folder / "state").exists()
    assert f"the run is over: exit code {code}" in out
    script = (cloud.folder / ".cache" / "hfgd_jax" / "startup-t.sh").read_text()
    assert run("bash", "-n", cloud.folder / ".cache" / "hfgd_jax" / "startup-t.sh")[0] == 0
    assert _started(script.splitlines()[-1])[1][-2:] == RUN


def test_watch_creates_the_request_and_ignores_old_exit_codes(cloud):
    (cloud.folder / "next").write_text("ACTIVE\nACTIVE 0\n")
    (cloud.folder / "exit_code_2").touch()
    (found, _, err), calls = cloud("watch")
    assert found == 0, err
    assert calls == ["create", "delete"]


def test_watch_fails_after_recreates_tries(cloud):
    (cloud.folder / "next").write_text("FAILED\n")
    (found, _, err), calls = cloud("watch", RECREATES="2")
    assert found == 2 and "t is FAILED after 2 tries" in err and calls.count("create") == 3
