"""The stall limit, `config.train.stall_timeout`: ends a process that waits too long for one thing.

What has the limit, each for itself: a step, a batch of data, a batch of an evaluation, a save. Whatever is
not under a limit may take any time: what comes before the first step, compiling, drawing.

The process ends at once and not by an exception: no orderly exit can wait for a thread that hangs.
"""

import contextlib
import dataclasses
import faulthandler
import itertools
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import jax
from etils import epath

EXIT_CODE = 75  # EX_TEMPFAIL: try again
_LOOK = 1.0  # seconds between two looks at what is waited for, at most
_LOOKS = 20  # within the limit, at least
_WRITING = 10.0  # seconds that the file of stacks may take


@dataclasses.dataclass(eq=False)
class _Wait:
    what: str
    over: Callable[[], bool]
    seconds: float = 0.0  # so far


class StallLimit:
    """Ends the process where something takes longer than so many seconds; a context manager.

    It then writes what was waited for and the stacks of all threads to stderr and to
    `WORKDIR/stuck_process_N.txt`, and exits with code 75. Time in which the whole process was stopped
    (Ctrl-Z, a machine that slept) does not count. A thread in native code that keeps Python's lock for ever
    is the one case that it cannot see.

    Args:
        seconds: the limit; 0: none.
        workdir: of the run.
    """

    def __init__(self, seconds: float = 0.0, workdir: epath.PathLike = ""):
        self.seconds, self._workdir = seconds, workdir
        self._waits: list[_Wait] = []  # added by any thread, removed by the watching one
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stall limit", daemon=True)

    def __enter__(self) -> Self:
        if self.seconds:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        if self.seconds:
            self._thread.join()

    def watch(self, what: str, over: Callable[[], bool]) -> None:
        """Limits something in the background; `over()`, asked from another thread, tells whether it ended."""
        if self.seconds:
            self._waits.append(_Wait(what, over))

    @contextlib.contextmanager
    def limit(self, what: str) -> Iterator[None]:
        """Limits the block. `what` is the message: what took too long."""
        done = threading.Event()
        self.watch(what, done.is_set)
        try:
            yield
        finally:
            done.set()

    def batches(self, batches: Iterator[Any], name: str, start: int = 0) -> Iterator[Any]:
        """The batches of an iterator, each under the limit.

        Args:
            batches: to take from.
            name: of the data, for the message.
            start: number of the first batch, for the message.
        """
        for number in itertools.count(start):
            what = f"{name}, batch {number}: no batch for so many seconds; a worker or the disk hangs"
            with self.limit(what):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _watch(self) -> None:
        look = min(_LOOK, self.seconds / _LOOKS)
        last = time.monotonic()
        while not self._closed.wait(look):
            now = time.monotonic()
            # Longer than two looks: it was not the run that stood still, but the process.
            passed, last = min(now - last, 2 * look), now
            for wait in list(self._waits):
                if wait.over():
                    self._waits.remove(wait)
                elif wait.seconds >= self.seconds:
                    self._end(wait.what)
                else:
                    wait.seconds += passed

    def _end(self, what: str) -> None:
        """Writes the stacks and ends the process."""
        path = epath.Path(self._workdir) / f"stuck_process_{jax.process_index()}.txt"
        text = (
            f"config.train.stall_timeout={self.seconds:g}: {what}. The stacks of all threads follow and go "
            f"to {path}; ending with exit code {EXIT_CODE}. See to it or allow more seconds; the same "
            "command goes on from the last checkpoint"
        )
        print(f"error: {text}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        sys.stderr.flush()
        # A disk that hangs must not keep the process from ending.
        writer = threading.Thread(target=_write_stacks, args=(path, text), daemon=True)
        writer.start()
        writer.join(timeout=_WRITING)
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(EXIT_CODE)


def _write_stacks(path: epath.Path, text: str) -> None:
    with tempfile.TemporaryFile("w+") as stacks:  # faulthandler wants a file of this machine
        faulthandler.dump_traceback(stacks, all_threads=True)
        stacks.seek(0)
        with contextlib.suppress(OSError):  # stderr has them
            path.write_text(f"{text}\n\n{stacks.read()}")


NO_LIMIT = StallLimit()
