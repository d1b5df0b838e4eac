"""launch/gke_jobset.py and its YAML: against the schemas of JobSet and Job, and the front door's flags."""

import json
import shlex
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from launchers import LAUNCH, ROOT, load, main_flags, run

gke = load("gke_jobset")
SCHEMA = json.loads(Path(__file__).with_name("jobset_schema.json").read_text())
KUBERNETES = "1.31"
SETTINGS = {name: example for name, (example, *_) in gke.EXAMPLES.items()}


def _jobset(arguments=("--config=configs/demo.py",), **more):
    return yaml.safe_load(gke.render(gke.settings(SETTINGS | more), arguments))


def _check(jobset):
    jsonschema.validate(jobset, SCHEMA)
    for replicated in jobset["spec"]["replicatedJobs"]:
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **replicated["template"]}
        kubernetes_validate.validate(job, KUBERNETES, strict=True)


def _pod(jobset):
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def test_dry_run_is_a_valid_jobset_of_our_run():
    words = [sys.executable, LAUNCH / "gke_jobset.py", "--dry-run", "--"]
    code, out, err = run(*words, "--config=configs/demo.py:tiny", "--config.eval.scales=(0.5, 1)", **SETTINGS)
    assert code == 0, err
    head, *lines, end = out.splitlines()
    assert shlex.split(head)[:2] == ["kubectl", "apply"] and end == "END"
    jobset = yaml.safe_load("\n".join(lines))
    _check(jobset)
    job, pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"], _pod(jobset)
    assert job["parallelism"] == job["completions"] == 4 and job["completionMode"] == "Indexed"
    (container,) = pod["containers"]
    (flags,) = main_flags(container["command"] + container["args"])
    assert flags["cluster"] == "gke" and flags["expect_devices"] == 16
    assert flags["workdir"] == "gs://my-bucket/runs/first"
    assert "--config.eval.scales=(0.5, 1)" in container["args"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4} == container["resources"]["requests"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes[mounts["/data"]]["csi"]["volumeAttributes"]["bucketName"] == "my-bucket"
    assert mounts.keys() == {"/data", "/dev/shm"} and set(mounts.values()) == volumes.keys()


def test_exit_code_2_fails_the_jobset_and_others_restart_it():
    spec = _jobset(RESTARTS="7")["spec"]
    (rule,) = spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [2] and rule["action"] == "FailJob"
    assert rule["onExitCodes"]["containerName"] == "train"
    (whole,) = spec["failurePolicy"]["rules"]
    assert whole["action"] == "FailJobSet" and whole["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert spec["failurePolicy"]["maxRestarts"] == 7


def test_labels_are_those_of_xpk():
    jobset = _jobset()
    assert jobset["metadata"]["labels"]["xpk.google.com/workload"] == jobset["metadata"]["name"] == "first"
    assert jobset["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "multislice-queue"


@pytest.mark.parametrize(("topology", "chips", "hosts"), [("2x4", 8, 1), ("8x8", 64, 16), ("2x2x4", 16, 4)])
def test_hosts_of_a_slice(topology, chips, hosts):
    per_host = "8" if hosts == 1 else "4"
    jobset = _jobset(TOPOLOGY=topology, CHIPS_PER_HOST=per_host)
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["completions"] == hosts
    assert f"--expect_devices={chips}" in _pod(jobset)["containers"][0]["args"]


def test_arguments_arrive_unchanged():
    odd = ["--workdir=a: b # c", '--x="q"', "--y=$HOME", "--z={1}", "--v=$(NAME)"]
    args = _pod(_jobset(odd))["containers"][0]["args"]
    assert args[-6:-2] == odd[:-1] and args[-2] == "--v=$$(NAME)"  # Kubernetes makes it $(NAME) again


def test_the_schemas_refuse_what_is_wrong():
    jobset = _jobset()
    jobset["spec"]["failurePolicy"]["maxRestart"] = 3
    with pytest.raises(jsonschema.ValidationError):
        _check(jobset)
    jobset = _jobset()
    _pod(jobset)["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        _check(jobset)


@pytest.mark.parametrize("name", gke.EXAMPLES)
def test_missing_settings_are_named(name):
    with pytest.raises(gke.Wrong, match=f"^{name} is not set; for instance: export {name}="):
        gke.settings(SETTINGS | {name: ""})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NAME", "Has_Capitals"),
        ("NAME", "a" * 29),
        ("TOPOLOGY", "16"),
        ("CHIPS_PER_HOST", "3"),
        ("WORKDIR", "runs/local"),
        ("DATA_BUCKET", "gs://b"),
        ("DATA_DIR", "/mnt"),
        ("IMAGE", "two words"),
    ],
)
def test_wrong_settings_are_named_with_their_value(name, value):
    with pytest.raises(gke.Wrong, match=f"^{name}={value}: "):
        gke.settings(SETTINGS | {name: value})


def test_missing_arguments_are_one_line():
    code, out, err = run(sys.executable, LAUNCH / "gke_jobset.py", "--dry-run", **SETTINGS)
    assert code == 2 and not out and err.count("\n") == 1 and "put hfgd_jax.main's flags after --" in err


def test_the_image_copies_existing_files_and_installs_them():
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert {"hfgd_jax", "configs", "pyproject.toml"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists(), name
    where = next(line.split()[1] for line in lines if line.startswith("WORKDIR"))
    assert _pod(_jobset())["containers"][0]["workingDir"] == where
    assert any("pip install" in line and "-c constraints.txt -e" in line for line in lines)
