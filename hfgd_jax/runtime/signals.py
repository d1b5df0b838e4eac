"""Signals that stop a run: it asks `Stop` between steps, saves and ends."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import jax

from hfgd_jax.runtime import collectives

_POLL = 0.1  # seconds between two looks at the signal while waiting


class Stop:
    """Notes SIGINT and SIGTERM so that the loop can save and end; a second signal ends at once.

    With several processes a signal to any of them stops all, at the same call: JAX's preemption service
    catches SIGTERM (which Cloud TPU, Kubernetes and SLURM send ahead of an interruption) and chooses the
    next call for all. Every process therefore has to call it equally often, at the same places.
    """

    signal_name: str | None = None
    exit_code = 0

    def __init__(self) -> None:
        self._asked = 0

    def __call__(self) -> bool:
        """Whether to stop; for all processes to call."""
        if self.signal_name is None:
            self._asked += 1
            if collectives.preemption_reached(self._asked):
                self._set(signal.SIGTERM)
        return self.signal_name is not None

    def wait(self, seconds: float) -> None:
        """Waits so long, or until there is a reason to stop; for all processes to call."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.signal_name is None:
            time.sleep(_POLL)

    def _set(self, number: int) -> None:
        self.signal_name, self.exit_code = signal.Signals(number).name, 128 + number

    def _note(self, number: int, _frame: Any) -> None:
        if self.signal_name is not None:
            os._exit(128 + number)
        self._set(number)

    def _pass_on(self, number: int, _frame: Any) -> None:
        """Ctrl-C to one of several processes: the preemption service stops all; a second one ends it."""
        signal.signal(number, lambda *_: os._exit(128 + number))
        os.kill(os.getpid(), signal.SIGTERM)

    @contextlib.contextmanager
    def listening(self) -> Iterator["Stop"]:
        """Installs the handlers for the time of the block."""
        if jax.process_count() > 1:  # SIGTERM stays the preemption service's
            handlers = {signal.SIGINT: self._pass_on}
        else:
            handlers = {signal.SIGINT: self._note, signal.SIGTERM: self._note}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
