"""Says what a command is at, where that takes longer than a user would wait in silence."""

import sys
import threading
import time
from typing import Self, TextIO

import jax


def duration(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress:
    """Prints lines that end in `done/total`.

    On a terminal they are written over each other; elsewhere there is one every few seconds, and the last of
    each total.
    """

    def __init__(self, stream: TextIO | None = None, seconds: float = 5.0) -> None:
        self.stream, self.last = stream or sys.stderr, time.monotonic()
        self.terminal = self.stream.isatty()
        self.seconds = 0.1 if self.terminal else seconds

    def __call__(self, line: str) -> None:
        done, _, total = line.rpartition(" ")[2].partition("/")
        end = done == total
        if end or time.monotonic() - self.last >= self.seconds:
            self.last = time.monotonic()
            start = "\r" if self.terminal else ""
            self.stream.write(start + line + ("" if self.terminal and not end else "\n"))
            self.stream.flush()


class Doing:
    """Tells on stderr, from time to time, what the block is at and how far; a context manager.

    The first line comes after `seconds`, so that what is quick says nothing. On a terminal one line is kept
    up to date and removed at the end; elsewhere lines come after twice as long each time. Process 0 alone
    tells.

    Args:
        what: as in "compiling the training step".
        total: how many steps of its own the block has, where that is known.
        seconds: to the first line.
        stream: where to; None: stderr.
    """

    def __init__(
        self, what: str, total: int | None = None, *, seconds: float = 5.0, stream: TextIO | None = None
    ):
        self._what, self._total, self._done = what, total, 0
        self._stream, self._seconds = stream or sys.stderr, seconds
        self._terminal = self._stream.isatty()
        self._start, self._over = time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._tell, name="progress", daemon=True)

    def __enter__(self) -> Self:
        if jax.process_index() == 0:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def __call__(self, done: int) -> None:
        """Notes how many steps are done."""
        self._done = done

    def line(self, passed: float) -> str:
        """What to say after so many seconds."""
        if not self._total:
            return f"{self._what}: {duration(passed)}"
        left = (self._total - self._done) * passed / self._done if self._done else None
        eta = "" if left is None else f", ETA {duration(left)}"
        return f"{self._what}: {self._done}/{self._total}{eta}"

    def _tell(self) -> None:
        wait, told = min(self._seconds, 1.0) if self._terminal else self._seconds, False
        while not self._over.wait(wait):
            line = self.line(time.monotonic() - self._start)
            self._stream.write(f"\r\x1b[K{line}" if self._terminal else f"{line}\n")
            self._stream.flush()
            told, wait = True, wait if self._terminal else 2 * wait
        if told and self._terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
