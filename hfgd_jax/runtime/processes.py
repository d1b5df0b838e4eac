"""Several processes as one program: `jax.distributed` is started here and nowhere else.

Where the processes come from is read from the flags, or from the environment that a scheduler sets:

    explicit    --coordinator HOST:PORT --processes N --process I, the same but I on every host
    slurm       a step that `srun` started with several tasks
    gke         TPU slices in a Kubernetes cluster (TPU_WORKER_HOSTNAMES)
    tpu         a Cloud TPU VM, alone or one of a pod (its metadata server)
"""

import dataclasses
import importlib.util
import itertools
import os
import re
import sys
import time
import traceback
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import flags
from jax.experimental import multihost_utils

from hfgd_jax.errors import UserError

CLUSTERS = ("auto", "none", "explicit", "slurm", "gke", "tpu")

_CLUSTER = flags.DEFINE_enum(
    "cluster", "auto", CLUSTERS, "Where the processes of a run come from; auto: what is found."
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, for --cluster=explicit.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes, for --cluster=explicit.")
_PROCESS = flags.DEFINE_integer("process", None, "This process, from 0, for --cluster=explicit.")
_EXPECT_DEVICES = flags.DEFINE_integer(
    "expect_devices", 0, "Devices that all hosts must have together; 0: whatever is there.", lower_bound=0
)

_PATIENCE = 3600.0  # seconds that processes wait for each other where they meet
_meetings = itertools.count()
_GRACE = 3.0  # seconds that process 0, whom the others cannot do without, waits for them to fail as well


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
    """What the flags and the environment say.

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


def start() -> None:
    """Starts this process as one of several where flags or environment say so; call before using devices.

    Raises:
        UserError: see `plan`; the others cannot be reached; or the devices are not as many as expected.
    """
    here = plan(
        os.environ,
        cluster=_CLUSTER.value,
        coordinator=_COORDINATOR.value,
        processes=_PROCESSES.value,
        process=_PROCESS.value,
        tpu=_has_tpu(),
    )
    if here.cluster != "none":
        _initialize(here)
    _check_devices(_EXPECT_DEVICES.value)


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


def barrier(name: str) -> None:
    """Returns when every process has come here; for all of them to call.

    Collectives wait for the others, too, but some (gloo's, on CPUs) for half a minute only, which is less
    than one process may need for what it does alone: compiling, drawing.
    """
    if jax.process_count() > 1:
        number = next(_meetings)  # a barrier's name counts once
        wait = ocp.multihost.get_barrier_sync_fn()
        wait(key=f"{name}_{number}", timeout_ms=int(_PATIENCE * 1000))


def check_equal(name: str, text: str) -> None:
    """Makes sure that every process has the same text; for all of them to call.

    Raises:
        UserError: naming `name` and the processes that differ from process 0.
    """
    if jax.process_count() == 1:
        return
    sums = multihost_utils.process_allgather(np.uint32(zlib.crc32(text.encode())))
    different = np.flatnonzero(sums != sums[0]).tolist()
    if different:
        raise UserError(
            f"{name}: processes {different} have another one than process 0; start all of them with the same "
            "command, code and files"
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
            time.sleep(_GRACE)
        os._exit(code)
