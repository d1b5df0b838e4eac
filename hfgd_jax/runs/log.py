"""What a run reports: the progress line, `metrics.jsonl`, `metrics.json`, TensorBoard events."""

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

import jax
import numpy as np
from etils import epath
from jaxtyping import Integer, UInt8
from tensorboardX import SummaryWriter

from hfgd_jax.errors import UserError
from hfgd_jax.inference import render
from hfgd_jax.runtime import storage
from hfgd_jax.runtime.progress import duration

_UPLOAD_PAUSE = 60.0  # seconds from one copying of events into a bucket to the next
_UPLOAD_MOST = 4 * 2**20  # bytes of an event file in a bucket, which is copied whole; then comes another


class Stopwatch:
    """How a window's time was spent. Pauses (evaluation, saving) are left out of rates and ETA."""

    def __init__(self, images: int = 0):
        self.start, self.images = time.perf_counter(), images
        self.waiting = self.paused = 0.0

    def rates(self, images: int) -> dict[str, float]:
        """`images_per_second` and `data_wait` (a fraction) since the stopwatch stood at fewer `images`."""
        spent = max(time.perf_counter() - self.start - self.paused, 1e-9)
        return {
            "images_per_second": (images - self.images) / spent,
            "data_wait": self.waiting / spent,
        }


class Mirror(Protocol):
    """Where a run's curves and pictures go besides, such as `tracking.Tracker`."""

    def values(self, step: int, values: Mapping[str, float]) -> None:
        """Points of curves at a step."""

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """A picture at a step."""

    def close(self) -> None:
        """Nothing more comes."""


class RunLog:
    """Writes a run's records into its run directory and its progress to `stream`. Only process 0 writes.

    On a terminal one line is kept up to date; elsewhere each record is a line of its own. `mirror` is given
    all that TensorBoard is.
    """

    def __init__(
        self,
        workdir: epath.Path,
        total_steps: int,
        *,
        step: int = 0,
        stream: TextIO | None = None,
        mirror: Mirror | None = None,
    ):
        self.workdir, self.total, self._mirror = workdir, total_steps, mirror
        self.stream = stream or sys.stdout  # that of now: notebooks replace it
        self.tty = self.stream.isatty()
        self.active = jax.process_index() == 0
        self.mean_iou: float | None = None
        self._open_line = False
        if self.active:
            _refuse_foreign(workdir, step)
            self._lines = storage.Lines(workdir / "metrics.jsonl", lambda record: record["step"] <= step)
            for record in storage.records(workdir / "metrics.jsonl"):
                self.mean_iou = record.get("mIoU", self.mean_iou)
            # purge_step hides what an interrupted run wrote past the step it restarts from.
            self._events = _Events(workdir / "tensorboard", purge_step=step + 1)

    def info(self, text: str) -> None:
        """A plain line."""
        if self.active:
            self.stream.write(("\n" if self._open_line else "") + text + "\n")
            self.stream.flush()
            self._open_line = False

    def progress(self, step: int, loss: float, rates: dict[str, float] | None, batch_size: int) -> None:
        """The line with step, loss, mIoU so far, images/s, data-wait and ETA; what is not known is left out.

        Args:
            rates: of `Stopwatch.rates`; None for the first step, whose time says nothing about the others'.
        """
        if not self.active:
            return
        parts = [f"step {step}/{self.total}", f"loss {loss:.4f}"]
        if self.mean_iou is not None:
            parts.append(f"mIoU {self.mean_iou:.4f}")
        if rates:
            speed = rates["images_per_second"]
            left = (self.total - step) * batch_size / speed if speed else float("inf")
            parts += [f"{speed:.1f} images/s", f"data-wait {rates['data_wait']:.0%}"]
            parts += [f"ETA {duration(left)}"] if left < 1e7 else []
        line = "  ".join(parts)
        self.stream.write(f"\r\x1b[K{line}" if self.tty else line + "\n")
        self._open_line = self.tty
        self.stream.flush()

    def record(self, step: int, values: dict[str, float]) -> None:
        """A line of `metrics.jsonl` and a point in each TensorBoard curve. None and NaN become null."""
        if not self.active:
            return
        clean = {k: (v if v is None or np.isfinite(v) else None) for k, v in values.items()}
        self._lines.add({"step": step} | clean)
        self._show(step, clean)

    def evaluated(self, step: int, summary: dict[str, Any], matrix: Integer[np.ndarray, "k k"]) -> None:
        """Writes `metrics.json`, records the means of an evaluation, and shows classes and confusions.

        Args:
            step: that was evaluated.
            summary: of `Counts.summary`.
            matrix: pixels; rows are truth.
        """
        self.mean_iou = summary["mIoU"]
        write_metrics(self.workdir, step, summary, matrix)
        self.record(step, {k: v for k, v in summary.items() if not isinstance(v, dict)})
        classes = summary["per_class"]
        self._show(step, {f"IoU/{name}": value for name, value in classes.items()})
        self.image(step, "confusion", render.confusion(matrix, list(classes)))

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Adds an image to the TensorBoard events, and to the mirror."""
        if self.active:
            self._events.writer.add_image(name, image, step, dataformats="HWC")
            if self._mirror:
                self._mirror.image(step, name, image)

    def _show(self, step: int, values: Mapping[str, float | None]) -> None:
        """Points of curves; None has none."""
        if not self.active:
            return
        known = {name: value for name, value in values.items() if value is not None}
        for name, value in known.items():
            self._events.writer.add_scalar(name, value, step)
        self._events.flush()
        if self._mirror:
            self._mirror.values(step, known)

    def recorded_evaluation(self, step: int) -> bool:
        """Whether `metrics.jsonl` holds an evaluation of `step`."""
        found = storage.records(self.workdir / "metrics.jsonl")
        return any(record["step"] == step and "mIoU" in record for record in found)

    def flush(self) -> None:
        """Returns when all is in the run directory, as a checkpoint's records must be before it."""
        if self.active:
            self._lines.flush()
            self._events.flush(now=True)

    def close(self) -> None:
        """Ends an open progress line and flushes the records and events."""
        if self.active:
            if self._open_line:
                self.stream.write("\n")
            self._lines.flush()
            self._events.close()
            if self._mirror:
                self._mirror.close()


def _refuse_foreign(workdir: epath.Path, step: int) -> None:
    """Raises UserError where a folder without a run has files of these names, which would be overwritten."""
    if step or (workdir / "config.json").exists():
        return
    for name in ("metrics.jsonl", "metrics.json"):
        if (workdir / name).exists():
            raise UserError(f"--workdir={workdir}: holds no run, but a {name}; use another --workdir")


class _Events:
    """TensorBoard events in a folder; those for a bucket are written here and copied there now and then."""

    def __init__(self, folder: epath.Path, purge_step: int):
        self.folder, self._staging = folder, None
        self._copied, self._when = 0, time.monotonic()
        if storage.is_remote(folder):
            self._staging = tempfile.TemporaryDirectory()
        self.writer = self._open(purge_step)

    def _open(self, purge_step: int | None) -> SummaryWriter:
        if not self._staging:
            return SummaryWriter(str(self.folder), purge_step=purge_step)
        name = f".{time.time_ns()}"  # TensorBoard reads the files in the order of their names
        return SummaryWriter(self._staging.name, purge_step=purge_step, filename_suffix=name)

    def flush(self, *, now: bool = False) -> None:
        """Writes the events; into a bucket at most once a minute, or `now`."""
        self.writer.flush()
        if self._staging and (now or time.monotonic() - self._when >= _UPLOAD_PAUSE):
            self._copy()

    def close(self) -> None:
        """Writes all events and ends."""
        self.writer.close()
        if self._staging:
            self._copy()
            self._staging.cleanup()

    def _copy(self) -> None:
        self._when = time.monotonic()
        files = sorted(Path(self._staging.name).iterdir(), key=lambda file: file.stat().st_mtime)
        size = sum(file.stat().st_size for file in files)
        if size != self._copied:
            for file in files:
                storage.write_atomically(self.folder / file.name, file.read_bytes())
            self._copied = size
        if size >= _UPLOAD_MOST:
            self.writer.close()
            for file in files:
                file.unlink()
            self._copied, self.writer = 0, self._open(None)


def write_metrics(
    workdir: epath.Path, step: int, summary: dict[str, Any], matrix: Integer[np.ndarray, "k k"]
) -> None:
    """Writes `metrics.json`, the last evaluation: its step, its summary, and `confusion_matrix` (pixels)."""
    if jax.process_index() == 0:
        scores = json.dumps({"step": step} | summary, indent=2).removesuffix("\n}")
        rows = ",\n    ".join(map(json.dumps, matrix.tolist()))  # a line a class
        text = f'{scores},\n  "confusion_matrix": [\n    {rows}\n  ]\n}}\n'
        storage.write_atomically(workdir / "metrics.json", text)
