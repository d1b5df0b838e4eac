"""The lease of a run directory, `WORKDIR/lease.json`: one training at a time writes there.

It names its owner, who renews it. An owner that is gone loses it to the next start, so that a run that was
killed goes on by itself, here or on another machine.
"""

import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import jax
from etils import epath

from hfgd_jax.errors import UserError, printable
from hfgd_jax.runtime import collectives, storage

NAME = "lease.json"
RENEW = 5.0  # seconds between two renewals
SILENCE = 30.0  # seconds without one after which an owner elsewhere counts as gone
_SETTLE = 2.0  # seconds in which another start that saw the same may write, too
_PROC = Path("/proc")


class Lease:
    """Holds the run directory for the time of the block; a context manager, for all processes to enter.

    An owner on this machine counts as gone when its process is. One elsewhere is watched for `silence`
    seconds of our own clock: it counts as gone unless it renews. Process 0 is the owner for all.

    Args:
        workdir: of the run; made where it is missing.
        report: takes lines for the user.
        renew, silence: seconds, see `RENEW`, `SILENCE`.

    Raises:
        UserError: on entry, where another training has it.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        report: Callable[[str], None] = print,
        *,
        renew: float = RENEW,
        silence: float = SILENCE,
    ):
        self._workdir, self._report = epath.Path(workdir).expanduser(), report
        self._path, self._renew, self._silence = self._workdir / NAME, renew, silence
        self._owner = _this_process() | {"token": secrets.token_hex(8), "renewals": 0}
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> Self:
        refusal: UserError | OSError | None = None
        if jax.process_index() == 0:
            try:
                self._acquire()
            except (UserError, OSError) as error:
                refusal = error
        (refused,) = collectives.from_process_0([int(refusal is not None)])
        if refusal is not None:
            raise refusal
        if refused:
            raise UserError(f"--workdir={self._workdir}: process 0 could not have it; see what it says")
        if jax.process_index() == 0:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        if self._thread.is_alive():
            self._thread.join()
            if self._is_ours(self._read()):
                self._path.unlink(missing_ok=True)

    # -- taking it --

    def _acquire(self) -> None:
        self._workdir.mkdir(parents=True, exist_ok=True)
        if self._create():
            return
        there = self._read()
        if there is not None:
            owner = _parsed(there)
            if owner.get("machine") != self._owner["machine"]:
                self._watch(there, owner)
            elif _is_alive(owner):
                raise self._refusal(owner)
            self._report(f"{self._path}: {_named(owner)} is gone; this process takes its run over")
        self._write()
        time.sleep(_SETTLE)  # another start may have seen the same: the last one to write has it
        if not self._is_ours(there := self._read()):
            raise self._refusal(_parsed(there))

    def _create(self) -> bool:
        """Writes the lease where there is none; False where there is one, and in a bucket, always."""
        if storage.is_remote(self._path):
            return False
        try:
            with Path(self._path).open("x") as file:  # epath has no such mode
                file.write(json.dumps(self._owner))
        except FileExistsError:
            return False
        return True

    def _watch(self, there: str, owner: dict[str, Any]) -> None:
        """Returns when the owner has been silent for long enough; raises where it renews its lease."""
        self._report(
            f"{self._path}: held by {_named(owner)}; waiting {self._silence:g} s to see whether it is alive"
        )
        until = time.monotonic() + self._silence
        while time.monotonic() < until:
            time.sleep(self._renew / 5)
            now = self._read()
            if now is None:
                return
            if now != there:
                raise self._refusal(_parsed(now))

    def _refusal(self, owner: dict[str, Any]) -> UserError:
        return UserError(
            f"--workdir={self._workdir}: another training writes there: {_named(owner)}. Let it end, stop "
            "it, or use another --workdir"
        )

    # -- keeping it --

    def _keep(self) -> None:
        while not self._left.wait(self._renew):
            try:
                there = self._read()
                if there is not None and not self._is_ours(there):
                    self._end(_parsed(there))
                if self._workdir.exists():
                    self._owner["renewals"] += 1
                    self._write()
            except OSError:  # a full disk, a network: whatever is written next tells the user
                continue

    def _end(self, owner: dict[str, Any]) -> None:
        """Ends the process at once: it must not write one more file there."""
        print(
            "error: "
            + printable(
                f"--workdir={self._workdir}: {_named(owner)} has taken the run over while this process stood "
                "still; ending"
            ),
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    def _write(self) -> None:
        storage.write_atomically(self._path, json.dumps(self._owner))

    def _read(self) -> str | None:
        try:
            return self._path.read_text() if self._path.exists() else None
        except FileNotFoundError:
            return None

    def _is_ours(self, text: str | None) -> bool:
        return text is not None and _parsed(text).get("token") == self._owner["token"]


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "process": os.getpid(),
        "started": _start_of(os.getpid()),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _machine() -> str:
    """What processes that can see one another have in common: host, boot and namespace of processes."""
    parts = [socket.gethostname()]
    for read in (
        lambda: (_PROC / "sys/kernel/random/boot_id").read_text().strip(),
        lambda: str((_PROC / "self/ns/pid").readlink()),
    ):
        try:
            parts.append(read())
        except OSError:  # no Linux
            parts.append("")
    return " ".join(parts)


def _start_of(process: int) -> str:
    """When a process started, in ticks since the boot; "" where it is gone, or has ended.

    "alive" for one that is there, where there is no /proc.
    """
    if not (_PROC / "self/stat").exists():
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return ""
        except PermissionError:
            pass
        return "alive"
    try:
        fields = (_PROC / str(process) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _is_alive(owner: dict[str, Any]) -> bool:
    started = _start_of(owner["process"])
    return bool(started) and started == owner["started"]


def _parsed(text: str | None) -> dict[str, Any]:
    """The owner in a lease; empty where it is cut short or none."""
    try:
        owner = json.loads(text or "")
    except ValueError:
        return {}
    fields = {"host": str, "machine": str, "process": int, "started": str, "since": str, "token": str}
    whole = isinstance(owner, dict) and all(isinstance(owner.get(k), v) for k, v in fields.items())
    return owner if whole else {}


def _named(owner: dict[str, Any]) -> str:
    if not owner:
        return "an unknown process"
    return f"process {owner['process']} on {owner['host']}, since {owner['since']}"
