"""Signals that are answered at once, whatever the main thread is doing.

Python calls a signal's handler between two steps of the main thread, which may be compiling for minutes. A
thread of ours is told of each signal when it comes.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
Handler = Callable[[int, FrameType | None], object]
SAME = 0.5  # seconds in which another signal is the same one again: of a terminal and of what passes it on


@contextlib.contextmanager
def answered(note: Callable[[int], None], handlers: dict[int, Handler]) -> Iterator[None]:
    """For the time of the block, calls `note(number)` for each of these signals at once, in another thread.

    Args:
        note: takes a signal's number; signals that follow within `SAME` seconds are left out.
        handlers: by signal, what the main thread does when it gets to it.
    """
    ours, interpreters = socket.socketpair()
    interpreters.setblocking(False)
    thread = threading.Thread(target=_listen, args=(ours, note, handlers), name="signals", daemon=True)
    thread.start()
    fd_before = signal.set_wakeup_fd(interpreters.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(fd_before)
        interpreters.close()  # the thread reads the end
        thread.join()
        ours.close()


def _listen(ours: socket.socket, note: Callable[[int], None], handlers: dict[int, Handler]) -> None:
    last = -SAME
    while received := ours.recv(1):
        now = time.monotonic()
        if received[0] in handlers and now - last >= SAME:
            last = now
            note(received[0])


_loading: list[threading.Timer] = []


def while_loading(patience: float = 5.0) -> None:
    """From now on until `ending`, Ctrl-C and SIGTERM end the process with a line: for the time of imports.

    Args:
        patience: seconds after which a line says that libraries are being loaded.
    """

    def end(number: int, _: FrameType | None) -> None:
        print(f"{signal.Signals(number).name}: ending", file=sys.stderr, flush=True)
        os._exit(128 + number)

    for number in SIGNALS:
        signal.signal(number, end)
    line = "loading the libraries, which takes longest the first time"
    _loading.append(threading.Timer(patience, print, [line], {"file": sys.stderr, "flush": True}))
    _loading[-1].daemon = True
    _loading[-1].start()


@contextlib.contextmanager
def ending(seen: list[int]) -> Iterator[None]:
    """For the time of the block, Ctrl-C and SIGTERM end the command with a line; a second one ends it now.

    Args:
        seen: takes the signal's number.

    Raises:
        KeyboardInterrupt: in the main thread, once it gets to it.
    """

    def note(number: int) -> None:
        if seen:
            os._exit(128 + number)
        seen.append(number)
        print(f"{signal.Signals(number).name}: ending", file=sys.stderr, flush=True)

    for timer in _loading:
        timer.cancel()
    with answered(note, dict.fromkeys(SIGNALS, signal.default_int_handler)):
        yield
