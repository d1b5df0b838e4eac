"""How fast `hfgd serve` answers several clients at once, and what memory it takes.

    python benchmarks/serve_load.py --workdir runs/camvid --images photos/ --sizes 360x480

Starts the server as a process of its own on a free port, sends the images of a folder in turn, each client
its next one when its last is answered, and ends the server with SIGINT. Linux only: memory is
read from /proc.
"""

import argparse
import contextlib
import http.client
import itertools
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

PNG, JSON = "image/png", "application/json"


class Server(NamedTuple):
    """A server's process, its port, and the lines it wrote so far."""

    process: subprocess.Popen
    port: int
    lines: list[str]

    def resident(self, which: str = "VmRSS") -> int:
        """Bytes of memory; `VmHWM` is the most so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{which}:\s*(\d+) kB", status)[1]) << 10

    def post(
        self, body: bytes, kind: str = "application/octet-stream", accept: str = PNG
    ) -> tuple[int, bytes]:
        """The status and the body of the answer to an upload."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            client.request("POST", "/predict", body, {"Content-Type": kind, "Accept": accept})
            answer = client.getresponse()
            return answer.status, answer.read()
        finally:
            client.close()

    def end(self) -> int:
        """Interrupts the server; returns its exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=20)


@contextlib.contextmanager
def started(*options: str, env: dict[str, str] | None = None) -> Iterator[Server]:
    """A server with these options, once it serves.

    Raises:
        RuntimeError: it ended; the message is what it wrote.
    """
    command = [sys.executable, "-m", "hfgd_jax.tools.serve", "--port=0", *options]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, text=True, env=env, **streams) as process:
        try:
            lines: list[str] = []
            for line in process.stdout:
                lines.append(line)
                if found := re.search(r"serving step .* at http://[^:]*:(\d+)/", line):
                    break
            else:
                raise RuntimeError("".join(lines))
            threading.Thread(target=lines.extend, args=(process.stdout,), daemon=True).start()
            yield Server(process, int(found[1]), lines)
        finally:
            process.kill()


class Load(NamedTuple):
    """What came of a load: seconds of all, seconds of each answer, and how many of each status."""

    seconds: float
    each: list[float]
    statuses: Counter


def load(server: Server, bodies: Sequence[bytes], requests: int, clients: int, accept: str = PNG) -> Load:
    """Sends so many requests from so many clients at once; an error of a connection has status 0."""
    numbers, lock = iter(range(requests)), threading.Lock()
    each, statuses = [], Counter()

    def client() -> None:
        for number in numbers_of_all():
            begun = time.perf_counter()
            try:
                status, _ = server.post(bodies[number % len(bodies)], accept=accept)
            except (OSError, http.client.HTTPException):
                status = 0
            with lock:
                each.append(time.perf_counter() - begun)
                statuses[status] += 1

    def numbers_of_all() -> Iterator[int]:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            yield number

    begun = time.perf_counter()
    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Load(time.perf_counter() - begun, sorted(each), statuses)


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--images", required=True, type=Path, help="a folder")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--sizes", default="", help="as of hfgd serve")
    given = parser.parse_args()
    files = sorted(file for file in given.images.iterdir() if file.is_file())
    bodies = [file.read_bytes() for file in itertools.islice(files, given.requests)]
    begun = time.perf_counter()
    with started(f"--workdir={given.workdir}", f"--sizes={given.sizes}") as server:
        print(f"serves after {time.perf_counter() - begun:.0f} s")
        for clients, requests in ((1, min(10, given.requests)), (given.clients, given.requests)):
            before = server.resident()
            done = load(server, bodies, requests, clients)
            cuts = statistics.quantiles(done.each, n=20, method="inclusive")
            after, most = (server.resident(which) >> 20 for which in ("VmRSS", "VmHWM"))
            print(f"{clients} at a time, {requests} requests: {dict(done.statuses)} in {done.seconds:.1f} s")
            print(
                f"  {requests / done.seconds:.2f} a second; latency: median {cuts[9]:.2f} s, "
                f"95% {cuts[18]:.2f} s, most {done.each[-1]:.2f} s"
            )
            print(f"  memory: {before >> 20} MiB before, {after} MiB after, {most} MiB at most")
        begun = time.perf_counter()
        code = server.end()
        print(f"SIGINT: ended after {time.perf_counter() - begun:.1f} s with code {code}")


if __name__ == "__main__":
    main()
