"""Ends a run that is stuck, so that whatever started it can start it again.

What beats when: the loop beats after each step whose loss it has read, its evaluation after each batch.
What may take any time is done under `paused`: everything before the first step, compiling (in an
evaluation: handing a batch to the devices, which compiles where its shape is new; reading the pictures'
sizes), drawing overlays, and saving, which has a limit of its own (`config.checkpoint.timeout`).
"""

import contextlib
import faulthandler
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Self

import jax
from etils import epath

EXIT_CODE = 75  # EX_TEMPFAIL: try again
_LOOKS = 20  # at the heart between two beats that are due


class Heartbeat:
    """Watches that `beat` is called at least every so many seconds; a context manager.

    Where it is not, the stacks of all threads go to stderr and to `WORKDIR/stuck_process_N.txt`, and the
    process ends with exit code 75, whatever its threads are doing. Time in which the whole process was
    stopped (Ctrl-Z, a machine that slept) does not count.

    Args:
        seconds: between two beats; 0 turns it off.
        workdir: of the run.
    """

    def __init__(self, seconds: float, workdir: str | os.PathLike[str]):
        self.seconds = seconds
        self._path = epath.Path(workdir) / f"stuck_process_{jax.process_index()}.txt"
        self._quiet, self._pauses = 0.0, 0
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        if self.seconds:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self.seconds:
            self._thread.join()

    def beat(self) -> None:
        """Tells that the run goes on."""
        with self._lock:
            self._quiet = 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """For what may take any time: nothing is expected inside the block, and its end is a beat."""
        with self._lock:
            self._pauses += 1
        try:
            yield
        finally:
            with self._lock:
                self._pauses -= 1
                self._quiet = 0.0

    def _watch(self) -> None:
        look = self.seconds / _LOOKS
        last = time.monotonic()
        while not self._over.wait(look):
            now = time.monotonic()
            with self._lock:
                # Longer than two looks: it was not the run that stood still, but the process.
                self._quiet = 0.0 if self._pauses else self._quiet + min(now - last, 2 * look)
                stuck = self._quiet >= self.seconds
            last = now
            if stuck:
                self._end()

    def _end(self) -> None:
        """Writes the stacks and ends the process."""
        text = (
            f"config.train.heartbeat={self.seconds:g}: nothing has moved for so many seconds; the stacks of "
            f"all threads follow and go to {self._path}; ending with exit code {EXIT_CODE}. The same command "
            "goes on from the last checkpoint"
        )
        print(f"error: {text}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        sys.stderr.flush()
        # A disk that hangs must not keep the process from ending.
        writer = threading.Thread(target=self._write, args=(text,), daemon=True)
        writer.start()
        writer.join(timeout=10)
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(EXIT_CODE)

    def _write(self, text: str) -> None:
        with tempfile.TemporaryFile("w+") as stacks:  # faulthandler wants a file of this machine
            faulthandler.dump_traceback(stacks, all_threads=True)
            stacks.seek(0)
            self._path.write_text(f"{text}\n\n{stacks.read()}")
