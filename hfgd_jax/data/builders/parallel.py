"""Maps a function over records on threads, in order and in little memory; and prints progress."""

import collections
import concurrent.futures
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ordered_map(function: Callable[[T], R], items: Iterable[T], threads: int | None = None) -> Iterator[R]:
    """Yields `function(item)` in the items' order, computed by threads (by default one a core).

    Threads are enough: the libraries that decode and encode release the interpreter's lock. At most two items
    a thread are under way or waiting to be taken. An exception of `function` is raised in its item's place.
    """
    threads = threads or _cores()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        pending = collections.deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) >= 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _cores() -> int:
    """Cores that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
