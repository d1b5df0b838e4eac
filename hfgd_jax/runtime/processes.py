"""Several processes as one program: `jax.distributed` is started and left here and nowhere else.

Where the processes come from is read from the flags, or from the environment that a scheduler sets:

    explicit    --coordinator HOST:PORT --processes N --process I, the same but I on every host
    slurm       a step that `srun` started with several tasks
    gke         TPU slices in a Kubernetes cluster (TPU_WORKER_HOSTNAMES)
    tpu         a Cloud TPU VM, alone or one of a pod (its metadata server)
"""

import dataclasses
import importlib.util
import os
import re
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags

from hfgd_jax.errors import UserError
from hfgd_jax.runtime import compilation_cache

CLUSTERS = ("auto", "none", "explicit", "slurm", "gke", "tpu")

_EXIT_DELAY = 3.0  # seconds that a failing process 0, which the others depend on, leaves them to report


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to start.

    Attributes:
        cluster: one of `CLUSTERS` but `auto`; `none` is a single process.
        arguments: of `jax.distributed.initialize`.
    """

    cluster: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def plan(
    environ: Mapping[str, str],
    *,
    cluster: str = "auto",
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    tpu: bool = False,
) -> Plan:
    """The plan that the flags and the environment make.

    Args:
        environ: of the process.
        cluster, coordinator, processes, process: the flags.
        tpu: whether this machine has TPU chips.

    Raises:
        UserError: flags that do not go together, or a cluster that is not there.
    """
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    named = [name for name, value in given.items() if value is not None]
    if named and cluster not in ("auto", "explicit"):
        raise UserError(f"{named[0]}={given[named[0]]}: only with --cluster=explicit, not {cluster}")
    if named or cluster == "explicit":
        return _explicit(coordinator, processes, process, [name for name in given if name not in named])
    slurm = {"SLURM_PROCID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_LOCALID"} <= environ.keys()
    gke = "TPU_WORKER_HOSTNAMES" in environ and "KUBERNETES_SERVICE_HOST" in environ
    if cluster == "auto":
        several = slurm and int(environ["SLURM_NTASKS"]) > 1
        cluster = "slurm" if several else "gke" if gke else "tpu" if tpu else "none"
    elif cluster == "slurm" and not slurm:
        raise UserError("--cluster=slurm: no SLURM step here; start with srun (launch/slurm.sbatch)")
    elif cluster == "gke" and not gke:
        raise UserError("--cluster=gke: TPU_WORKER_HOSTNAMES is not set; see launch/gke_jobset.yaml")
    elif cluster == "tpu" and not tpu:
        raise UserError("--cluster=tpu: no TPU chips here, or jax[tpu] is not installed")
    if cluster == "slurm":
        # By itself JAX takes one GPU a task, also where a task has a node to itself.
        local = _slurm_gpus(environ)
        arguments = {"cluster_detection_method": "slurm"} | ({"local_device_ids": local} if local else {})
        return Plan("slurm", arguments)
    return Plan(cluster)


def _explicit(coordinator: Any, processes: Any, process: Any, missing: list[str]) -> Plan:
    if missing:
        raise UserError(
            f"--cluster=explicit: {' and '.join(missing)} missing; give --coordinator=HOST:PORT, "
            "--processes=N and --process=I to every process"
        )
    if not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^:\s]+):\d+", coordinator):
        raise UserError(f"--coordinator={coordinator}: want HOST:PORT of process 0, such as 10.0.0.2:8476")
    if not 0 <= process < processes:
        raise UserError(f"--process={process}: want a number from 0 to --processes={processes} less 1")
    arguments = {"coordinator_address": coordinator, "num_processes": processes, "process_id": process}
    return Plan("explicit", arguments | {"cluster_detection_method": "deactivate"})


def _slurm_gpus(environ: Mapping[str, str]) -> list[int]:
    """The GPUs of a SLURM task, counted among those that it sees; empty where there are none."""
    if environ.get("CUDA_VISIBLE_DEVICES"):
        visible = len(environ["CUDA_VISIBLE_DEVICES"].split(","))
    else:
        visible = int(environ.get("SLURM_GPUS_ON_NODE", 0))
    counts: list[int] = []  # tasks of each node, from the like of "2(x3),1"
    for part in environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
        tasks, _, times = part.rstrip(")").partition("(x")
        counts += [int(tasks)] * int(times or 1)
    tasks = counts[min(int(environ.get("SLURM_NODEID", 0)), len(counts) - 1)]
    bound = "SLURM_GPUS_PER_TASK" in environ or "SLURM_TRES_PER_TASK" in environ or visible < tasks
    if bound or visible % tasks:
        return list(range(visible))
    share, place = visible // tasks, int(environ["SLURM_LOCALID"])
    return list(range(place * share, (place + 1) * share))


def define_flags() -> None:
    """Defines the flags that `start` reads."""
    flags.DEFINE_enum(
        "cluster", "auto", CLUSTERS, "Where the processes of a run come from; auto: what is found."
    )
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, for --cluster=explicit.")
    flags.DEFINE_integer("processes", None, "How many processes, for --cluster=explicit.")
    flags.DEFINE_integer("process", None, "This process, from 0, for --cluster=explicit.")
    flags.DEFINE_integer(
        "expect_devices", 0, "Devices that all hosts must have together; 0: whatever is there.", lower_bound=0
    )


def start() -> None:
    """Starts this process as one of several where flags or environment say so; call before using devices.

    The flags are those of `define_flags`, parsed.

    Raises:
        UserError: see `plan`; the others cannot be reached; or the devices are not as many as expected.
    """
    values = flags.FLAGS
    here = plan(
        os.environ,
        cluster=values.cluster,
        coordinator=values.coordinator,
        processes=values.processes,
        process=values.process,
        tpu=_has_tpu(),
    )
    if here.cluster != "none":
        compilation_cache.leave()
        _initialize(here)
    _check_devices(values.expect_devices)


def _has_tpu() -> bool:
    wanted = os.environ.get("JAX_PLATFORMS", "tpu")
    chips = any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    return "tpu" in wanted and chips and importlib.util.find_spec("libtpu") is not None


def _initialize(here: Plan) -> None:
    try:
        jax.distributed.initialize(**here.arguments)
    except (RuntimeError, ValueError) as error:
        if here.cluster == "tpu" and "coordinator_address should be defined" in str(error):
            return  # a TPU machine outside Cloud TPU: one process
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"cannot start as one of several processes (--cluster={here.cluster}, {dict(here.arguments)}): "
            f"{reason}. Are all of them started, and is process 0's port open to the others?"
        ) from error


def _check_devices(expected: int) -> None:
    devices = jax.devices() if expected else []
    if len(devices) != expected:
        kinds = sorted({device.device_kind for device in devices})
        raise UserError(
            f"--expect_devices={expected}: {len(devices)} are here ({', '.join(kinds)}), of "
            f"{jax.process_count()} process(es), {jax.local_device_count()} on this one "
            f"(process {jax.process_index()}). Is a host missing, or JAX without its accelerator's plugin?"
        )


def require_one_process(mode: str) -> None:
    """Raises UserError where this is one of several processes."""
    if jax.process_count() > 1:
        raise UserError(
            f"--mode={mode}: runs in one process, but this is one of {jax.process_count()}; start it on one "
            "host alone (--cluster=none)"
        )


def end_now(code: int) -> None:
    """Ends a failing process of several at once: an orderly exit would wait for processes that cannot come.

    Prints the exception that is being handled, if any. Does nothing in a process that is alone.
    """
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        error = sys.exception()
        if error is not None:
            traceback.print_exc()
        if isinstance(error, jax.errors.JaxRuntimeError):
            print("was another process the first to end? The same command for all goes on", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        if jax.process_index() == 0:
            time.sleep(_EXIT_DELAY)
        os._exit(code)
