"""Do the tests find the faults that they are there for? Plants known ones, one at a time, and runs the tests.

    python benchmarks/planted_faults.py                              # all of benchmarks/planted_faults.toml
    python benchmarks/planted_faults.py --only car_threshold_over_k  # some, by name
    python benchmarks/planted_faults.py --check                      # runs nothing: are the texts there?

A fault is a text of one file, which must occur there exactly once, and what replaces it. Each is planted in a
copy of the checkout (tracked and new files, as they are now), and the test files that ought to find it run
there with `-x`. A test that fails finds it, and so does a run that takes longer than 3 times the unchanged
code's and 60 seconds; tests that cannot be imported are an error of the fault. First the needed test files
must pass on the unchanged copy (a file that skips all its tests, for want of a library, passes). Prints a
line a fault and writes `benchmarks/results/DATE_planted_faults.json` after each. What that file has of this
commit is not run again, unless `--only` names it, so that the same command goes on with what was stopped; a
file of another commit is not overwritten. Exits with 1 where a fault was not found.
"""

import argparse
import compileall
import contextlib
import importlib.metadata
import json
import os
import platform
import py_compile
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FAULTS = Path(__file__).with_suffix(".toml")
FIELDS = ("name", "file", "old", "new", "tests")
NO_TESTS = 5  # pytest's exit code where there are none, or all are skipped as a file
SLACK = 60.0  # seconds beside 3 times the unchanged code's
FIRST_LIMIT = 1800.0  # seconds of a test file on the unchanged code
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+?)(?:\[.*)?(?: - .*)?$", re.MULTILINE)


class Ended(NamedTuple):
    """How a run of pytest ended: its exit code (None: killed at the time limit), seconds and output."""

    code: int | None
    seconds: float
    output: str

    def first_failure(self) -> str:
        """The first test that failed, without its parameters; "" where the output names none."""
        names = FAILED.findall(self.output)
        return names[0] if names else ""


def read_faults(path: Path, checkout: Path) -> list[dict[str, Any]]:
    """The list of faults, checked against a checkout. Exits with the reason where one does not fit it."""
    faults = tomllib.loads(path.read_text())["fault"]
    wrong = [
        f"{name}: two faults have this name"
        for name, n in Counter(f["name"] for f in faults).items()
        if n > 1
    ]
    for fault in faults:
        if sorted(fault) != sorted(FIELDS):
            wrong.append(f"{fault['name']}: has {sorted(fault)}; want {sorted(FIELDS)}")
            continue
        paths = [fault["file"], *fault["tests"]]
        if missing := [name for name in paths if not (checkout / name).exists()]:
            wrong.append(f"{fault['name']}: not in {checkout}: {', '.join(missing)}")
            continue
        times = (checkout / fault["file"]).read_text().count(fault["old"])
        if times != 1 or fault["old"] == fault["new"]:
            wrong.append(f"{fault['name']}: its old text occurs {times} times in {fault['file']}; want once")
    if wrong:
        sys.exit("\n".join(f"error: {path.name}: {line}" for line in wrong))
    return faults


def copy_checkout(checkout: Path, target: Path) -> None:
    """Copies the files that git tracks or does not ignore, as they are in the working tree."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (checkout / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(checkout / name, target / name)
    # By the source's hash: a changed file is compiled anew even within the same second.
    checked = py_compile.PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(target / "hfgd_jax", quiet=1, invalidation_mode=checked)
    ask = [sys.executable, "-c", "import hfgd_jax; print(hfgd_jax.__file__)"]
    found = subprocess.run(
        ask, cwd=target, env=environment(target), capture_output=True, text=True, check=False
    )
    if not found.stdout.startswith(str(target)):
        sys.exit(f"error: tests in {target} would import {found.stdout.strip() or found.stderr.strip()}")


def environment(copy: Path) -> dict[str, str]:
    """What the tests run with: the copy's package, the CPU, and a compilation cache that all faults share."""
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
    return os.environ | {
        "PYTHONPATH": str(copy),
        "PYTHONDONTWRITEBYTECODE": "1",  # it would be checked by time and size, which a fault may keep
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",  # most of the tests' time goes into small ones
    }


def run_tests(copy: Path, tests: list[str], limit: float) -> Ended:
    """Runs test files in a copy of the checkout, until the first failure or the limit in seconds."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-rfE", *tests]
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            command, cwd=copy, env=environment(copy), stdout=output, stderr=output, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # with all processes that the tests started
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        return Ended(code, round(time.perf_counter() - start, 1), output.read())


def plant_and_test(copy: Path, fault: dict[str, Any], limit: float) -> dict[str, Any]:
    """Plants a fault in the copy, runs its tests, takes it out again. The fault and what came of it.

    `outcome` is `found`, `time-out` (also found), `missed` or `error` (pytest could not run the tests); `by`
    is the test that failed first, or the error.
    """
    path = copy / fault["file"]
    whole = path.read_text()
    path.write_text(whole.replace(fault["old"], fault["new"]))
    try:
        ended = run_tests(copy, fault["tests"], limit)
    finally:
        path.write_text(whole)
    outcome = {None: "time-out", 0: "missed", 1: "found"}.get(ended.code, "error")
    result = {"outcome": outcome, "by": ended.first_failure(), "seconds": ended.seconds, **fault}
    if outcome == "error":
        result["by"] = f"pytest ended with {ended.code}: {ended.output.strip().splitlines()[-1:]}"
    return result


def circumstances(checkout: Path) -> dict[str, Any]:
    """Commit, date and machine."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(
            command, cwd=checkout, capture_output=True, text=True, check=True
        ).stdout.strip()

    return {
        "commit": git("rev-parse", "HEAD"),
        "changed_since": bool(git("status", "--porcelain", "--", "hfgd_jax", "tests")),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax", "pytest")},
    }


class Record:
    """The JSON file: circumstances, seconds of each test file on the unchanged code, each fault's result.

    What the file holds is kept where it is of the same commit, both times without changes since.
    """

    def __init__(self, path: Path, here: dict[str, Any]):
        self.path, self.here = path, here
        self.unchanged: dict[str, float] = {}
        self.results: dict[str, dict[str, Any]] = {}
        if path.exists():
            old = json.loads(path.read_text())
            if old["commit"] != here["commit"]:
                sys.exit(f"error: {path} is of commit {old['commit'][:7]}; give another file with --out")
            if not (old["changed_since"] or here["changed_since"]):
                self.unchanged = old["seconds_unchanged"]
                self.results = {result["name"]: result for result in old["faults"]}

    def has(self, fault: dict[str, Any]) -> bool:
        """Whether the result of this very fault is there."""
        result = self.results.get(fault["name"], {"outcome": "error"})
        return result["outcome"] != "error" and all(result[key] == value for key, value in fault.items())

    def write(self, faults: list[dict[str, Any]]) -> None:
        """Writes what there is of these faults, in their order."""
        results = [self.results[fault["name"]] for fault in faults if self.has(fault)]
        outcomes = Counter(result["outcome"] for result in results)
        found = outcomes["found"] + outcomes["time-out"]
        content = {
            **self.here,
            "planted": len(results),
            "found": found,
            "time-out": outcomes["time-out"],
            "missed": [result["name"] for result in results if result["outcome"] == "missed"],
            "seconds": round(sum(result["seconds"] for result in results), 1),
            "seconds_unchanged": self.unchanged,
            "faults": results,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(content, indent=1) + "\n")
        new.replace(self.path)


def run_unchanged(
    copy: Path, record: Record, faults: list[dict[str, Any]], wanted: list[dict[str, Any]]
) -> None:
    """Runs each needed test file once on the unchanged code, unless recorded. Exits where one fails."""
    for name in dict.fromkeys(name for fault in wanted for name in fault["tests"]):
        if name in record.unchanged:
            continue
        ended = run_tests(copy, [name], FIRST_LIMIT)
        if ended.code not in (0, NO_TESTS):
            print(ended.output[-3000:], file=sys.stderr)
            sys.exit(f"error: {name} does not pass on the unchanged code (pytest ended with {ended.code})")
        record.unchanged[name] = ended.seconds
        record.write(faults)
        print(f"{'passes':8}  {ended.seconds:6.1f} s  {name}", flush=True)


def run_faults(
    copies: list[Path], record: Record, faults: list[dict[str, Any]], wanted: list[dict[str, Any]]
) -> None:
    """Plants the wanted faults, as many at a time as there are copies; prints and records each result."""
    free: queue.Queue[Path] = queue.Queue()
    for copy in copies:
        free.put(copy)

    def one(fault: dict[str, Any]) -> dict[str, Any]:
        limit = 3 * len(copies) * sum(record.unchanged[name] for name in fault["tests"]) + SLACK
        copy = free.get()
        try:
            return plant_and_test(copy, fault, limit)
        finally:
            free.put(copy)

    width = max((len(fault["name"]) for fault in faults), default=0)
    with ThreadPoolExecutor(len(copies)) as pool:
        for result in pool.map(one, wanted):
            record.results[result["name"]] = result
            record.write(faults)
            line = (
                f"{result['outcome']:8}  {result['seconds']:6.1f} s  {result['name']:{width}}  {result['by']}"
            )
            print(line.rstrip(), flush=True)


def main() -> int:
    """Plants what the flags ask for; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", default="", help="Names of faults, joined by commas; the default is all.")
    parser.add_argument("--jobs", type=int, default=1, help="Faults at a time, each in a copy of its own.")
    parser.add_argument("--checkout", type=Path, default=ROOT, help="What is copied and tested.")
    parser.add_argument("--out", type=Path, help="The JSON file, in place of the dated one.")
    parser.add_argument("--check", action="store_true", help="Only check that every fault fits the checkout.")
    flags = parser.parse_args()
    checkout, only = flags.checkout.resolve(), list(filter(None, flags.only.split(",")))
    faults = read_faults(FAULTS, checkout)
    if unknown := set(only) - {fault["name"] for fault in faults}:
        sys.exit(f"error: --only={flags.only}: not in {FAULTS.name}: {', '.join(sorted(unknown))}")
    if flags.check:
        print(f"{len(faults)} faults, in {len({fault['file'] for fault in faults})} files")
        return 0
    here = circumstances(checkout)
    out = flags.out or ROOT / "benchmarks" / "results" / f"{here['date']}_planted_faults.json"
    record = Record(out, here)
    wanted = [f for f in faults if (f["name"] in only if only else not record.has(f))]
    with tempfile.TemporaryDirectory(prefix="planted_faults_") as folder:
        copies = [Path(folder).resolve() / str(i) for i in range(max(1, flags.jobs))]
        for copy in copies:
            copy_checkout(checkout, copy)
        run_unchanged(copies[0], record, faults, wanted)
        run_faults(copies, record, faults, wanted)
    record.write(faults)
    result = json.loads(out.read_text())
    print(
        f"{result['found']} of {result['planted']} planted faults found in {result['seconds']:.0f} s: {out}"
    )
    return int(bool(result["missed"]) or result["planted"] < len(faults))


if __name__ == "__main__":
    sys.exit(main())
