"""Signals that stop a run: it asks `Stop` between steps, saves and ends."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator

import jax

from hfgd_jax.runtime import collectives, interrupts

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
        self._passed_on = False
        self._doing = ""

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

    @contextlib.contextmanager
    def after(self, doing: str) -> Iterator[None]:
        """A block that is not left halfway and may take long; a signal's answer names it."""
        before, self._doing = self._doing, doing
        try:
            yield
        finally:
            self._doing = before

    def _set(self, number: int) -> None:
        self.signal_name, self.exit_code = signal.Signals(number).name, 128 + number

    def _note(self, number: int) -> None:
        if self.signal_name is not None or self._passed_on:
            os._exit(128 + number)
        name, after = signal.Signals(number).name, f" after {self._doing}" if self._doing else ""
        print(f"{name}: stopping{after}; a second one ends at once", file=sys.stderr, flush=True)
        if jax.process_count() > 1:  # Ctrl-C to one of several processes: the preemption service stops all
            self._passed_on = True
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self._set(number)

    @contextlib.contextmanager
    def listening(self) -> Iterator["Stop"]:
        """Listens to signals for the time of the block."""
        ours = interrupts.SIGNALS
        if jax.process_count() > 1:
            ours = (signal.SIGINT,)  # SIGTERM stays the preemption service's
        with interrupts.answered(self._note, {number: lambda *_: None for number in ours}):
            yield self
