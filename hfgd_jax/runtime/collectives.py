"""Collectives: what all processes of a run call together, at the same places and in the same order.

In a single process each returns at once with its own values. Arrays that are split over devices are
`sharding.py`'s.
"""

import itertools
import zlib

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import Int64

from hfgd_jax.errors import UserError

_BARRIER_TIMEOUT = 3600.0  # seconds
_LOW_BITS = 30  # counts are sent in halves of that many bits: int64 would be cut to int32
_barriers = itertools.count()


def barrier(name: str) -> None:
    """Returns when every process has called it.

    The other collectives wait for all processes, too, but some (gloo's, on CPUs) for half a minute only,
    which is less than one process may need for what it does alone: compiling, drawing.

    Args:
        name: for the error of a process that waited for an hour.
    """
    if jax.process_count() > 1:
        wait = ocp.multihost.get_barrier_sync_fn()
        # A name can be used once.
        wait(key=f"{name}_{next(_barriers)}", timeout_ms=int(_BARRIER_TIMEOUT * 1000))


def check_equal(name: str, text: str) -> None:
    """Makes sure that every process has the same text.

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


def all_gather(number: int) -> list[int]:
    """Every process's number (of 32 bits), in the order of the processes."""
    if jax.process_count() == 1:
        return [number]
    return multihost_utils.process_allgather(np.int32(number)).tolist()


def from_process_0(numbers: list[int]) -> list[int]:
    """Process 0's numbers (of 32 bits), on every process.

    For what processes may see differently, such as a folder of a shared file system.
    """
    if jax.process_count() == 1:
        return numbers
    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(numbers))))
    sent = np.zeros(count, np.int32)
    if jax.process_index() == 0:
        sent[:] = numbers
    return np.asarray(multihost_utils.broadcast_one_to_all(sent)).tolist() if count else []


def sum_over_processes(counts: Int64[np.ndarray, "*s"]) -> Int64[np.ndarray, "*s"]:
    """The sum of every process's counts, each from 0 to below 2**60."""
    halves = np.stack([counts >> _LOW_BITS, counts & (2**_LOW_BITS - 1)]).astype(np.int32)
    high, low = np.moveaxis(np.reshape(multihost_utils.process_allgather(halves), (-1, *halves.shape)), 1, 0)
    return (high.astype(np.int64).sum(0) << _LOW_BITS) + low.astype(np.int64).sum(0)


def preemption_reached(count: int) -> bool:
    """Whether JAX's preemption service has told all processes to stop at this call.

    Args:
        count: of calls so far, which all processes number alike.
    """
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(count)
