"""Where the processes of a run come from: flags, SLURM, GKE, Cloud TPU. Real processes: tests/processes."""

import pytest

from hfgd_jax.errors import UserError
from hfgd_jax.runtime import processes
from hfgd_jax.runtime.processes import Plan, plan

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-4]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
}
GKE = {"TPU_WORKER_HOSTNAMES": "a-0,a-1", "TPU_WORKER_ID": "1", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}


def gpus(**environ):
    return plan(SLURM | environ).arguments.get("local_device_ids")


def test_the_default_is_one_process():
    assert plan({}) == Plan("none")
    assert plan(GKE | SLURM, cluster="none", tpu=True) == Plan("none")


def test_explicit_flags_overrule_the_environment():
    found = plan(SLURM, coordinator="host:8476", processes=3, process=2, tpu=True)
    assert found.cluster == "explicit"
    assert found.arguments["coordinator_address"] == "host:8476"
    assert (found.arguments["num_processes"], found.arguments["process_id"]) == (3, 2)
    assert plan({}, coordinator="[::1]:1", processes=1, process=0).cluster == "explicit"


def test_each_cluster_is_found_by_its_environment():
    assert plan(SLURM).arguments["cluster_detection_method"] == "slurm"
    assert plan(SLURM | {"SLURM_NTASKS": "1"}).cluster == "none"
    assert plan(GKE, tpu=True).cluster == "gke"
    assert plan({}, tpu=True).cluster == "tpu"


def test_slurm_tasks_share_the_gpus_of_their_node():
    """One task a node sees all of them, which JAX by itself does not (jax #16788)."""
    eight = ",".join("01234567")
    assert gpus() is None
    assert gpus(CUDA_VISIBLE_DEVICES=eight) == list(range(8))
    assert gpus(SLURM_GPUS_ON_NODE="4") == [0, 1, 2, 3]
    two_a_node = {"SLURM_STEP_TASKS_PER_NODE": "1,2(x3)", "SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": eight}
    assert gpus(**two_a_node) == [4, 5, 6, 7]
    assert gpus(**two_a_node | {"SLURM_NODEID": "0", "SLURM_LOCALID": "0"}) == list(range(8))
    # Each task was given its own: it sees no others.
    assert gpus(**two_a_node | {"CUDA_VISIBLE_DEVICES": "3"}) == [0]
    assert gpus(**two_a_node | {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_PER_TASK": "2"}) == [0, 1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"coordinator": "host:1"}, "--processes and --process missing"),
        ({"cluster": "explicit"}, "--coordinator and --processes and --process missing"),
        ({"coordinator": "host", "processes": 2, "process": 0}, "--coordinator=host: want HOST:PORT"),
        ({"coordinator": "host:1", "processes": 2, "process": 2}, "--process=2: want a number from 0"),
        ({"cluster": "slurm", "processes": 2}, "--processes=2: only with --cluster=explicit"),
        ({"cluster": "slurm"}, "no SLURM step"),
        ({"cluster": "gke"}, "TPU_WORKER_HOSTNAMES is not set"),
        ({"cluster": "tpu"}, "no TPU chips"),
    ],
)
def test_conflicting_flags_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        plan({}, **flags)


def test_missing_devices_raise_an_error_that_lists_those_present():
    processes._check_devices(0)
    processes._check_devices(8)
    with pytest.raises(UserError, match=r"--expect_devices=16: 8 are here \(cpu\), of 1 process"):
        processes._check_devices(16)


def test_checks_pass_in_a_single_process():
    processes.require_one_process("predict")
    processes.end_now(3)  # an ordinary exit follows
