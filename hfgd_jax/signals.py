"""Stopping cleanly: a run asks `Stop` between steps."""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any


class Stop:
    """Notes SIGINT and SIGTERM so that the loop can save and end; a second signal ends at once."""

    signal_name: str | None = None
    exit_code = 0

    def __call__(self) -> bool:
        return self.signal_name is not None

    def _note(self, number: int, _frame: Any) -> None:
        if self():
            os._exit(128 + number)
        self.signal_name, self.exit_code = signal.Signals(number).name, 128 + number

    @contextlib.contextmanager
    def listening(self) -> Iterator["Stop"]:
        """Installs the handlers for the time of the block."""
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
