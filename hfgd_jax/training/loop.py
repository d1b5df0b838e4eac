"""The one loop: build, restore, compile, step, log, evaluate, save."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from hfgd_jax import config as configuration
from hfgd_jax.data import pipeline
from hfgd_jax.data.prepared import CorruptRecordError
from hfgd_jax.errors import UserError
from hfgd_jax.evaluation.evaluator import Evaluator
from hfgd_jax.inference import render
from hfgd_jax.models import macs
from hfgd_jax.runs import checkpoints, optim
from hfgd_jax.runs.lease import Lease
from hfgd_jax.runs.log import Mirror, RunLog, Stopwatch
from hfgd_jax.runs.system import balanced, build, initial_state, open_data
from hfgd_jax.runs.workdir import check_workdir, failing_in_one_line
from hfgd_jax.runtime import collectives, sharding, storage
from hfgd_jax.runtime.progress import Doing, duration
from hfgd_jax.runtime.signals import Stop
from hfgd_jax.runtime.stall import StallLimit
from hfgd_jax.training.step import check_memory, compile_step


class Loop:
    """One training run in one run directory."""

    def __init__(self, config: ConfigDict, workdir: str, stop: Stop, mirror: Mirror | None = None):
        self.config, self.workdir, self.stop = config, epath.Path(workdir), stop
        collectives.check_equal("--config", configuration.to_json(config))
        self.system = build(config)
        sharding.check_batch_size(
            "config.train.batch_size / config.train.accumulate",
            config.train.batch_size // config.train.accumulate,
            self.system.mesh,
        )
        self.train_split = open_data(config, config.data.train_split)
        self.eval_split = open_data(config, config.data.eval_split)
        check_workdir(self.workdir, config)
        self.system = balanced(self.system, self.train_split)
        self.stall = StallLimit(config.train.stall_timeout, self.workdir)
        self.saved = checkpoints.Checkpoints(self.workdir, keep=config.checkpoint.keep, stall=self.stall)
        with Doing("making the first weights, or restoring the last ones"):
            self.state, self.origin = initial_state(self.system, self.saved)
        self.step = self.first = int(self.state.step)
        if self.saved.latest_step() is not None:
            self.saved.table(self.step).check_order(self.train_split.table)
        self.evaluator = Evaluator(self.system.model, config, self.system.mesh)
        self.log = RunLog(self.workdir, config.train.steps, step=self.step, mirror=mirror)
        self.watch = Stopwatch()
        self.corrupt = 0

    def run(self) -> None:
        """Trains to `train.steps`, or until `stop`; evaluates and saves on the way."""
        with self.stall:  # also while it closes: a save may hang
            try:
                self._log_setup()
                if self.step and self._evaluation_due() and not self.log.recorded_evaluation(self.step):
                    self._evaluate()
                if self.step < self.config.train.steps and not self.stop():
                    self._train()
                self.saved.wait()
                self._log_saves()
                self._log_end()
            finally:
                self.log.close()
                self.saved.close()

    def _log_setup(self) -> None:
        config, mesh, table = self.config, self.system.mesh, self.train_split.table
        batch = config.train.batch_size
        parameters = sum(x.size for x in jax.tree.leaves(self.state.params))
        model, image = self.system.model, jax.ShapeDtypeStruct((1, *config.data.crop, 3), np.uint8)
        counts = macs.count(lambda v, x: model.apply(v, x, train=False).logits, self.state.model, image)
        total = sum(counts.values())
        frozen = "; the backbone stays as it is" if config.optim.backbone_rate == 0.0 else ""
        self.log.info(
            f"devices: {mesh.size} x {mesh.devices.flat[0].device_kind}, {jax.process_count()} process(es); "
            f"mesh {dict(mesh.shape)}\n"
            f"batch: {batch} global, {batch // mesh.size} per device\n"
            f"model: {parameters / 1e6:.2f}M parameters, {total / 1e9:.2f} GMACs per image of "
            f"{config.data.crop[0]}x{config.data.crop[1]}\n"
            f"data: {config.data.dataset}, {len(self.train_split)} training and {len(self.eval_split)} "
            f"evaluation images; classes: {', '.join(f'{i} {c}' for i, c in enumerate(table.classes))}\n"
            f"{self._class_weights()}{self._warmup()}"
            f"weights: {self.origin}{frozen}"
        )

    def _class_weights(self) -> str:
        """A line with the classes' weights; empty where there are none."""
        weights, source = self.system.config.loss.class_weights, self.config.loss.balance
        if not weights:
            return ""
        named = (f"{w:.3g} {c}" for w, c in zip(weights, self.train_split.table.classes, strict=True))
        return f"class weights ({'given' if source == 'none' else source}): {', '.join(named)}\n"

    def _warmup(self) -> str:
        """A line about a warm-up that was shortened; empty where it was not."""
        given, steps = self.config.optim.warmup_steps, self.config.train.steps
        used = optim.warmup_steps(self.config.optim, steps)
        if used == given:
            return ""
        return f"warm-up: {used} of {steps} steps; config.optim.warmup_steps={given} is longer than the run\n"

    def _batches(self) -> pipeline.Batches:
        config, (process_index, process_count) = self.config, sharding.process_share(self.system.mesh)
        return pipeline.train_batches(
            self.train_split,
            config.data,
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            mean_pixel=self.system.mean_pixel,
            start=self.step,
            process_index=process_index,
            process_count=process_count,
        )

    def _next(self, batches: Iterator) -> tuple[dict[str, jax.Array], np.ndarray]:
        """The next batch on the devices, and the indices of this process's records in it."""
        start = time.perf_counter()
        local = next(batches)
        self.watch.waiting += time.perf_counter() - start
        self.corrupt += int(local["corrupt"].sum())
        arrays = {key: local[key] for key in ("image", "label")}
        with self._step_limit(self.step + 1):
            return sharding.global_batch(self.system.mesh, arrays), local["index"]

    def _compile(self, batch: dict[str, jax.Array]) -> Callable:
        start = time.perf_counter()
        with self.stop.after("the compilation"), Doing("compiling the training step"):
            compiled = compile_step(self.system, self.state, batch)
            needed = check_memory(compiled, self.config, self.system.mesh)
            collectives.barrier("compiled")
        self.log.info(
            f"compiled the training step in {time.perf_counter() - start:.1f} s; "
            f"{needed / 2**30:.2f} GiB per device"
        )
        return compiled

    def _train(self) -> None:
        config = self.config
        with self._batches() as source:
            batches = self.stall.batches(source, source.name, self.step)
            batch, index = self._next(batches)
            step_fn = self._compile(batch)
            # Only now: a first try that fails (wrong weights, too large a crop) leaves no run behind.
            if jax.process_index() == 0:
                storage.write_atomically(self.workdir / "config.json", configuration.to_json(config))
            self.watch, previous = Stopwatch(self.step * config.train.batch_size), None
            while self.step < config.train.steps and not self.stop():
                with self._step_limit(self.step + 1):
                    self.state, values = step_fn(self.state, batch)
                self.step += 1
                pending = (self.step, values, index)
                if self.step < config.train.steps:
                    batch, index = self._next(batches)  # while the devices compute
                if previous:
                    self._read(*previous)  # one step late: the devices never wait for the host
                previous = pending
                if self._save_due() or self._evaluation_due():
                    self._read(*previous)
                    previous = None
                    self._save()
                    if self._evaluation_due():
                        self._evaluate()
            if previous:
                self._read(*previous)
                self._save()

    def _step_limit(self, step: int) -> AbstractContextManager[None]:
        """Puts a block that belongs to a step under the stall limit."""
        return self.stall.limit(f"step {step}: nothing has moved for so many seconds")

    def _read(self, step: int, values: dict[str, jax.Array], index: np.ndarray) -> None:
        """Waits for a step's loss, checks it, and logs it where that is due.

        Raises:
            UserError: the loss or the gradient is not finite.
        """
        with self._step_limit(step):
            due = step % self.config.train.log_every == 0 or step == self.config.train.steps
            if not due:  # the others need not come from the devices
                values = {key: values[key] for key in ("loss", "gradient_norm")}
            host = {key: float(value) for key, value in jax.device_get(values).items()}
            self._log_saves(step)
            self._check_finite(step, host, index)
            if due:
                rates = self.watch.rates(step * self.config.train.batch_size)
                self.log.record(step, host | rates | {"corrupt_records": self.corrupt})
                known = rates if step > self.first + 1 else None
                self.log.progress(step, host["loss"], known, self.config.train.batch_size)
                self.watch = Stopwatch(step * self.config.train.batch_size)
            elif step == self.first + 1:
                self.log.progress(step, host["loss"], None, self.config.train.batch_size)

    def _check_finite(self, step: int, host: dict[str, float], index: np.ndarray) -> None:
        if not np.isfinite([host["loss"], host["gradient_norm"]]).all():
            records = ", ".join(self.train_split.record_id(int(i)) for i in index)
            raise UserError(
                f"step {step}: loss {host['loss']}, gradient norm {host['gradient_norm']}; "
                f"records: {records}. "
                f"The last checkpoint is of step {self.saved.latest_step() or 0}. Lower "
                "config.optim.learning_rate, set config.optim.clip_norm, or compute in float32 "
                "(config.train.dtype)"
            )

    def _save_due(self) -> bool:
        return self.step % self.config.checkpoint.every == 0 or self.step == self.config.train.steps

    def _evaluation_due(self) -> bool:
        every = self.config.eval.every
        return self.step == self.config.train.steps or bool(every and self.step % every == 0)

    def _meta(self, **more: Any) -> dict[str, Any]:
        return checkpoints.meta(self.step, self.config, self.train_split.table, **more)

    def _save(self) -> None:
        start = time.perf_counter()
        self.log.flush()
        self.saved.save(self.step, self.state.model, self.state.training, self._meta())
        self.watch.paused += time.perf_counter() - start

    def _log_saves(self, step: int | None = None) -> None:
        """Records the saves that have reached the disk, at `step` (None: the present one)."""
        for seen in self.saved.finished():
            self.log.record(self.step if step is None else step, seen)

    def _evaluate(self) -> None:
        start = time.perf_counter()
        share = -(-len(self.eval_split) // jax.process_count())  # of this process
        with Doing(f"evaluating at step {self.step}", share) as doing:
            scores = self.evaluator.score(
                self.state.model,
                self.eval_split,
                self.system.mean_pixel,
                should_stop=self.stop,
                on_batch=doing,
                stall=self.stall,
            )
        if scores is None:  # stopped: the evaluation is made up for on restart
            return
        summary = scores.summary(self.train_split.table.classes)
        with self._step_limit(self.step):
            self.log.evaluated(self.step, summary, scores.matrix)
        self._draw()
        collectives.barrier("drawn")
        best = self.saved.best_mean_iou()
        if best is None or (summary["mIoU"] or 0.0) > best:
            self.saved.save_best(self.step, self.state.model, self._meta(mIoU=summary["mIoU"] or 0.0))
        spent = time.perf_counter() - start
        self.watch.paused += spent
        self.log.info(
            f"evaluation at step {self.step}: mIoU {summary['mIoU'] or 0.0:.4f}, pixel accuracy "
            f"{summary['pixel_accuracy'] or 0.0:.4f} on {len(self.eval_split)} images in {duration(spent)}"
        )

    def _draw(self) -> None:
        """Overlays of the same few images at every evaluation."""
        variables = sharding.local_copy(self.system.mesh, self.state.model)
        if jax.process_index():
            return
        split, count = self.eval_split, min(self.config.eval.overlays, len(self.eval_split))
        for index in np.linspace(0, len(split) - 1, count).astype(int) if count else ():
            try:
                example = split.example(int(index))
            except CorruptRecordError:
                if not self.config.data.skip_corrupt:
                    raise
                continue
            mask = self.evaluator.predict_image(variables, example["image"], self.system.mean_pixel)
            table = split.table
            overlay = render.side_by_side(
                example["image"], mask, example["label"], table.palette, table.classes
            )
            folder = self.workdir / "images" / f"step_{self.step:08d}"
            folder.mkdir(parents=True, exist_ok=True)
            render.write_image(folder / f"{storage.file_name(example['id'])}.png", overlay)
            self.log.image(self.step, f"overlays/{example['id']}", overlay)

    def _log_end(self) -> None:
        if self.corrupt:
            self.log.info(f"{self.corrupt} times a corrupt record was skipped (config.data.skip_corrupt)")
        if self.stop():
            saved = self.saved.latest_step() == self.step
            kept = f"saved in {self.workdir / 'checkpoints'}" if saved else "there was nothing to save"
            self.log.info(
                f"stopped by {self.stop.signal_name} at step {self.step}; {kept}. The same command goes on "
                "from here"
            )
        elif self.step >= self.config.train.steps:
            self.log.info(f"finished at step {self.step}: {self.workdir}")


def run(config: ConfigDict, workdir: str, mirror: Mirror | None = None) -> int:
    """Trains, or goes on training, in the run directory `workdir`.

    Args:
        config, workdir: of the run.
        mirror: is given the curves and pictures besides.

    Returns:
        The exit code: 0, or 128 + signal where stopped.

    Raises:
        UserError: a config or data that cannot be used, another run or another training in `workdir`, or a
            loss that is not finite.
    """
    with Stop().listening() as stop, failing_in_one_line(epath.Path(workdir)), Lease(workdir):
        Loop(config, workdir, stop, mirror).run()
    return stop.exit_code
