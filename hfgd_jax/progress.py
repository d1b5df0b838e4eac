"""What a run tells while it goes: the progress line, `metrics.jsonl`, `metrics.json`, TensorBoard events."""

import json
import sys
import time
from typing import Any, TextIO

import jax
import numpy as np
from etils import epath
from tensorboardX import SummaryWriter


def duration(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Stopwatch:
    """Where a window's time went. Pauses (evaluation, saving) are left out of rates and ETA."""

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


class RunLog:
    """Writes a run's records into its workdir and its progress to `stream`. Only process 0 writes.

    On a terminal one line is kept up to date; elsewhere each record is a line of its own.
    """

    def __init__(self, workdir: epath.Path, total_steps: int, *, step: int = 0, stream: TextIO = sys.stdout):
        self.workdir, self.total = workdir, total_steps
        self.stream, self.tty = stream, stream.isatty()
        self.active = jax.process_index() == 0
        self.mean_iou: float | None = None
        self._open_line = False
        if self.active:
            self._lines = workdir / "metrics.jsonl"
            self._keep_lines_up_to(step)
            # purge_step hides what an interrupted run wrote past the step it restarts from.
            self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def _keep_lines_up_to(self, step: int) -> None:
        """Drops records of steps that will be taken (and written) again, and a line cut short by a kill."""
        if not self._lines.exists():
            return
        kept = []
        for line in self._lines.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if record["step"] <= step:
                kept.append(line)
                self.mean_iou = record.get("mIoU", self.mean_iou)
        write_atomically(self._lines, "".join(line + "\n" for line in kept))

    def say(self, text: str) -> None:
        """A plain line."""
        if self.active:
            self.stream.write(("\n" if self._open_line else "") + text + "\n")
            self.stream.flush()
            self._open_line = False

    def progress(self, step: int, loss: float, rates: dict[str, float], batch_size: int) -> None:
        """The line with step, loss, mIoU so far, images/s, data-wait and ETA."""
        if not self.active:
            return
        speed = rates["images_per_second"]
        left = (self.total - step) * batch_size / speed if speed else float("inf")
        line = (
            f"step {step}/{self.total}  loss {loss:.4f}  "
            f"mIoU {'-' if self.mean_iou is None else format(self.mean_iou, '.4f')}  "
            f"{speed:.1f} images/s  data-wait {rates['data_wait']:.0%}  "
            f"ETA {duration(left) if left < 1e7 else '-'}"
        )
        self.stream.write(f"\r\x1b[K{line}" if self.tty else line + "\n")
        self._open_line = self.tty
        self.stream.flush()

    def record(self, step: int, values: dict[str, float]) -> None:
        """A line of `metrics.jsonl` and a point in each TensorBoard curve. None and NaN become null."""
        if not self.active:
            return
        clean = {k: (v if v is None or np.isfinite(v) else None) for k, v in values.items()}
        with self._lines.open("a") as file:
            file.write(json.dumps({"step": step} | clean) + "\n")
        for name, value in clean.items():
            if value is not None:
                self._events.add_scalar(name, value, step)
        self._events.flush()

    def evaluated(self, step: int, summary: dict[str, Any]) -> None:
        """Writes `metrics.json` and records the means of an evaluation."""
        self.mean_iou = summary["mIoU"]
        write_metrics(self.workdir, step, summary)
        self.record(step, {k: v for k, v in summary.items() if not isinstance(v, dict)})

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds a uint8 `[H, W, 3]` picture to the TensorBoard events."""
        if self.active:
            self._events.add_image(name, image, step, dataformats="HWC")

    def recorded_evaluation(self, step: int) -> bool:
        """Whether `metrics.jsonl` holds an evaluation of `step`."""
        path = self.workdir / "metrics.jsonl"
        if not path.exists():
            return False
        records = map(json.loads, path.read_text().splitlines())
        return any(record["step"] == step and "mIoU" in record for record in records)

    def close(self) -> None:
        """Ends an open progress line and flushes the events."""
        if self.active:
            if self._open_line:
                self.stream.write("\n")
            self._events.close()


def write_metrics(workdir: epath.Path, step: int, summary: dict[str, Any]) -> None:
    """Writes `metrics.json`, the last evaluation: step, mIoU, pixel_accuracy, mean_accuracy, per_class."""
    if jax.process_index() == 0:
        write_atomically(workdir / "metrics.json", json.dumps({"step": step} | summary, indent=2) + "\n")


def write_atomically(path: epath.Path, text: str) -> None:
    """Writes beside `path` and renames, so that no reader meets half a file."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)
