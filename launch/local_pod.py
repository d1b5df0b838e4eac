"""Starts a pod on this machine: N processes with M host devices each, on the code path of a real one.

    python launch/local_pod.py --processes 2 --devices 4 -- --config configs/demo.py --workdir runs/pod \\
        --config.train.steps=40

What stands after `--` goes to every `python -m hfgd_jax.main`. Output lines carry their process, `[0] `.
Ctrl-C and SIGTERM go to all processes, which save and end; a third one ends them by force. Where one dies,
the others are ended. The exit code is the worst of those that ended by themselves.
"""

import argparse
import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO

DONE, USER_ERROR, STOPPED = 0, 2, (130, 143)
FORCE = 3  # signals, after which nothing is waited for
_POLL, _PAUSE = 0.05, 1.0  # seconds between two looks at the processes, and before a restart
_DEVICES = "--xla_force_host_platform_device_count"


def commands(options: argparse.Namespace, arguments: Sequence[str]) -> list[list[str]]:
    """The commands of all processes for one try, with a coordinator's port of its own.

    `arguments` are the user's, and have the last word.
    """
    head = [
        *(sys.executable, "-m", "hfgd_jax.main", f"--coordinator={free_address()}"),
        f"--processes={options.processes}",
    ]
    tail = [f"--expect_devices={options.processes * options.devices}", *arguments]
    return [[*head, f"--process={i}", *tail] for i in range(options.processes)]


def environment(base: Mapping[str, str], devices: int) -> dict[str, str]:
    """What is set for each process on top of `base`: `devices` host devices, lines as they come."""
    kept = re.sub(rf"{_DEVICES}=\S*", "", base.get("XLA_FLAGS", "")).split()
    flags = " ".join([*kept, f"{_DEVICES}={devices}"])
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1"}


def free_address() -> str:
    """HOST:PORT of this machine where nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def exit_code(returncode: int) -> int:
    """A process' return code as a shell has it: 128 + signal where one ended it."""
    return 128 - returncode if returncode < 0 else returncode


def worst(codes: Iterable[int]) -> int:
    """Of exit codes the one that says most: a user's mistake, then a crash, a stop, nothing.

    A user's mistake in one process makes the others crash, and comes again if it is tried again.
    """
    codes = list(codes)
    ranks = {USER_ERROR: 3, DONE: 0} | dict.fromkeys(STOPPED, 1)
    return max(codes, key=lambda code: ranks.get(code, 2), default=DONE)


def restartable(code: int) -> bool:
    """Whether the same command again may go on: after a crash, or where a stuck run ended itself (75)."""
    return code not in (DONE, USER_ERROR, *STOPPED)


class Pod:
    """The processes of one run, and the signals that are passed on to them.

    Attributes:
        signals: those that came so far.
    """

    def __init__(self, grace: float):
        self.grace, self.signals = grace, []
        self._passed = 0

    def note(self, number: int, _frame: object = None) -> None:
        """A signal handler: `run` passes the signal on."""
        self.signals.append(number)

    def run(self, started: Sequence[Sequence[str]], more: Mapping[str, str]) -> int:
        """Runs one process a command, all at once, to their end; returns the worst exit code.

        Args:
            started: a command for each process.
            more: is added to their environment.
        """
        running = [self._start(one, more) for one in started]
        pumps = [
            threading.Thread(target=_pump, args=(source, f"[{i}] ", target), daemon=True)
            for i, process in enumerate(running)
            for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
        ]
        for pump in pumps:
            pump.start()
        try:
            return self._watch(running)
        finally:
            _force(running)
            for pump in pumps:
                pump.join(timeout=5)  # a worker that outlives its process may hold the pipe

    @staticmethod
    def _start(one: Sequence[str], more: Mapping[str, str]) -> subprocess.Popen:
        # A session of its own: the terminal's Ctrl-C comes through here alone, once.
        return subprocess.Popen(
            one,
            env=os.environ | more,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def _watch(self, running: Sequence[subprocess.Popen]) -> int:
        while True:
            self._pass_on(running)
            ended = [code for process in running if (code := _ended(process)) is not None]
            if len(ended) == len(running):
                return worst(map(exit_code, ended))
            # Failed, or ended by a signal before it listened to it: the others would wait for it for ever.
            if any(code not in (DONE, *STOPPED) for code in ended):
                self._end(running)
                return worst(map(exit_code, ended))
            time.sleep(_POLL)

    def _pass_on(self, running: Sequence[subprocess.Popen]) -> None:
        while self._passed < len(self.signals):
            number = self.signals[self._passed]
            self._passed += 1
            if self._passed >= FORCE:
                _force(running)
            for process in running:
                if _ended(process) is None:
                    process.send_signal(number)

    def _end(self, running: Sequence[subprocess.Popen]) -> None:
        for process in running:
            if _ended(process) is None:
                process.terminate()
        until = time.monotonic() + self.grace
        while any(_ended(process) is None for process in running) and time.monotonic() < until:
            self._pass_on(running)
            time.sleep(_POLL)


def _pump(source: IO[bytes], prefix: str, target: IO[str]) -> None:
    """Copies whole lines with a prefix as they come, to the end: a full pipe would stop the process."""
    for line in source:
        with contextlib.suppress(OSError, ValueError):  # the target is closed
            target.buffer.write(prefix.encode() + line.rstrip(b"\n") + b"\n")
            target.flush()


def _ended(process: subprocess.Popen) -> int | None:
    """The return code of a process that has ended, whose workers are ended with it; else None."""
    before, code = process.returncode, process.poll()
    if before is None and code is not None:  # only now is the number of its group surely still its own
        _kill_group(process)
    return code


def _kill_group(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _force(running: Sequence[subprocess.Popen]) -> None:
    """Kills what is left of these processes, and the workers that they started."""
    for process in running:
        if _ended(process) is None:
            _kill_group(process)
            process.wait()


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our options and what stands after `--`; a wrong option ends with exit code 2."""
    own, rest = list(argv), []
    if "--" in own:
        own, rest = own[: own.index("--")], own[own.index("--") + 1 :]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--processes", type=_at_least(1), default=2, help="how many processes (2)")
    parser.add_argument("--devices", type=_at_least(1), default=1, help="host devices of each (1)")
    restarts = "tries after a crash or exit code 75; not after 0, 2, 130, 143 (0)"
    parser.add_argument("--restarts", type=_at_least(0), default=0, help=restarts)
    grace = "seconds that the others get to end after one died, before they are killed (20)"
    parser.add_argument("--grace", type=float, default=20.0, help=grace)
    parser.add_argument("--dry-run", action="store_true", help="print the commands, start nothing")
    options = parser.parse_args(own)
    if not rest:
        parser.error("nothing to run: put hfgd_jax.main's flags after --, such as -- --workdir runs/pod ...")
    return options, rest


def _at_least(least: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}: want a whole number from {least} on")
        return int(text)

    return convert


def main(argv: Sequence[str]) -> int:
    """Runs the pod; returns the exit code."""
    options, arguments = parse(argv)
    more = environment(os.environ, options.devices)
    if options.dry_run:
        settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in more.items())
        for one in commands(options, arguments):
            print(f"{settings} {shlex.join(one)}")
        return DONE
    pod = Pod(options.grace)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pod.note)
    code = DONE
    for attempt in range(options.restarts + 1):
        if attempt:
            print(f"local_pod: restart {attempt} of {options.restarts} after exit code {code}", flush=True)
            time.sleep(_PAUSE)
            if pod.signals:
                break
        code = pod.run(commands(options, arguments), more)
        if pod.signals or not restartable(code):
            break
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
