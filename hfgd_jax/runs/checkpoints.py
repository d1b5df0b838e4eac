"""Checkpoints of a run: `WORKDIR/checkpoints/STEP` (the latest N) and `WORKDIR/best/STEP` (the best mIoU).

Each holds the items `model` (params, batch_stats), `meta` (step, config, label table, mIoU where known, and
what the arrays are checked with: `runs/checkpoint_files.py`) and, in `checkpoints/`, `training` (step,
opt_state, rng). The data position is the step itself. Orbax writes to a temporary name and renames, so that a
save cut short is never taken for a checkpoint. What turns out to be damaged is moved to `WORKDIR/damaged/` by
the training.
"""

import contextlib
import dataclasses
import errno
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict

from hfgd_jax import config as configuration
from hfgd_jax.data.labels import LabelTable
from hfgd_jax.errors import UserError, warn
from hfgd_jax.runs import checkpoint_files
from hfgd_jax.runs.checkpoint_files import DamagedError, Tree
from hfgd_jax.runtime import collectives, storage
from hfgd_jax.runtime.stall import NO_LIMIT, StallLimit

_FOLDERS = ("checkpoints", "best")
_SMALLEST = 0.7  # of its arrays' bytes: what a checkpoint takes at least, for orbax compresses them
_FULL = ("RESOURCE_EXHAUSTED", "No space left", "quota")  # words of tensorstore and of the system
_LONGEST_SAVE = 86_400  # seconds after which orbax gives up where there is no stall limit


@dataclasses.dataclass
class _Save:
    """A save under way; times in seconds, from `time.perf_counter`."""

    step: int
    start: float
    blocked: float | None = None  # how long the loop stood still
    end: float | None = None  # when it was on disk


class Checkpoints:
    """The checkpoints of one run directory. `read_only` never writes, creates, moves or tidies.

    Args:
        workdir: of the run.
        keep: how many of the latest stay.
        stall: limits what a save takes.
        read_only: for everything but training.

    Raises:
        UserError: the run directory cannot be written to.
    """

    def __init__(
        self,
        workdir: str | epath.Path,
        *,
        keep: int = 1,
        stall: StallLimit = NO_LIMIT,
        read_only: bool = False,
    ):
        self.workdir = storage.absolute(epath.Path(workdir).expanduser())  # orbax wants it absolute
        self._stall = stall
        self._saves: dict[str, _Save] = {}  # the last one of each folder
        self._done: list[_Save] = []  # and not reported yet
        self._best_mean_iou: float | None = None
        self._needed = 0  # bytes of the last checkpoint's arrays
        self._managers = {} if read_only else {"checkpoints": self._manager("checkpoints", keep)}
        if not read_only:
            self._managers["best"] = self._manager("best", 1)

    def _manager(self, folder: str, keep: int) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            cleanup_tmp_directories=True,
            # Saves of both folders may be under way at once: each has barriers of its own.
            multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=folder),
            async_options=ocp.options.AsyncOptions(
                timeout_secs=math.ceil(2 * self._stall.seconds) or _LONGEST_SAVE,  # the stall limit is first
                post_finalization_callback=lambda: self._committed(folder),
            ),
        )
        handlers = {
            "model": ocp.StandardCheckpointHandler(),
            "training": ocp.StandardCheckpointHandler(),
            "meta": ocp.JsonCheckpointHandler(),
        }
        try:
            return ocp.CheckpointManager(self.workdir / folder, options=options, item_handlers=handlers)
        except OSError as error:
            raise UserError(f"--workdir={self.workdir}: cannot be written to ({error})") from error

    def _steps(self, folder: str) -> list[int]:
        path = self.workdir / folder
        return sorted(ocp.utils.checkpoint_steps(path)) if path.exists() else []

    def latest_step(self) -> int | None:
        """The last step saved, None where there is none."""
        return max(self._steps("checkpoints"), default=None)

    def best_mean_iou(self) -> float | None:
        """The mIoU of the best checkpoint, None where there is none. Raises DamagedError."""
        if self._best_mean_iou is None and (steps := self._steps("best")):
            self._best_mean_iou = checkpoint_files.read_meta(self.workdir / "best" / str(steps[-1]))["mIoU"]
        return self._best_mean_iou

    def config(self) -> str | None:
        """The config, as JSON, in the latest checkpoint that can be read; None where there is none."""
        for step in reversed(self._steps("checkpoints")):
            with contextlib.suppress(DamagedError):
                return json.dumps(
                    checkpoint_files.read_meta(self.workdir / "checkpoints" / str(step))["config"]
                )
        return None

    # -- writing --

    def save(self, step: int, model: Tree, training: Tree, meta: Mapping[str, Any]) -> None:
        """Starts writing a checkpoint; returns before it is on disk. A step already saved is left alone.

        Raises:
            UserError: this or an earlier save failed; the earlier checkpoints are whole.
        """
        self._write("checkpoints", step, {"model": model, "training": training}, meta)

    def save_best(self, step: int, model: Tree, meta: Mapping[str, Any]) -> None:
        """Like `save`, of the model alone, in place of the best one so far; `meta` has its `mIoU`."""
        self._write("best", step, {"model": model}, meta)
        self._best_mean_iou = meta["mIoU"]

    def _write(self, folder: str, step: int, items: Mapping[str, Tree], meta: Mapping[str, Any]) -> None:
        manager, start = self._managers[folder], time.perf_counter()
        if step in manager.all_steps():
            return
        if not storage.is_remote(self.workdir) and not (self.workdir / folder).is_dir():
            raise UserError(  # orbax would make a new one, in which the rest of the run is missing
                f"--workdir={self.workdir}: was removed while the run wrote to it (at step {step}); put it "
                "back, or start again in another"
            )
        self._needed = sum(leaf.nbytes for leaf in jax.tree.leaves(items))
        with self._reporting(step):
            manager.wait_until_finished()
            if (free := self._free()) is not None and free < _SMALLEST * self._needed:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            whole = self._steps("checkpoints")
            what = f"the save of step {step} to {self.workdir} took longer; checkpoints still whole: {whole}"
            args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
            args["meta"] = ocp.args.JsonSave(checkpoint_files.seal(meta, items))  # compiles at the first save
            save = self._saves[folder] = _Save(step, start)
            with self._stall.limit(what):
                manager.save(step, args=ocp.args.Composite(**args), force=True)
            self._stall.watch(what, lambda: not manager.is_saving_in_progress())
            save.blocked = time.perf_counter() - start

    def _committed(self, folder: str) -> None:
        save = self._saves[folder]
        save.end = time.perf_counter()
        if folder == "checkpoints":
            self._done.append(save)

    def finished(self) -> list[dict[str, float]]:
        """What to record of those saves of `save` that have ended since the last call.

        Returns:
            Of each: `saved_step`; `save_seconds` that the loop stood still for it; `save_total_seconds` until
            it was on disk. On process 0; the others know of no end.
        """
        done = [save for save in self._done if save.blocked is not None]
        for save in done:
            self._done.remove(save)  # in place: the background adds to it
        return [
            {
                "saved_step": save.step,
                "save_seconds": save.blocked,
                "save_total_seconds": save.end - save.start,
            }
            for save in done
        ]

    def wait(self) -> None:
        """Returns when everything is on disk; raises UserError where it could not be written."""
        for manager in self._managers.values():
            with self._reporting(None):
                manager.wait_until_finished()

    def close(self) -> None:
        """Waits for what is under way (its errors too) and lets go of the folders."""
        self.wait()
        for manager in self._managers.values():
            manager.close()

    @contextlib.contextmanager
    def _reporting(self, step: int | None) -> Iterator[None]:
        """Turns an error of a save into one line that names the checkpoints that are whole."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # tensorstore and orbax raise many kinds
            if _is_of_another(error):
                raise
            raise UserError(
                f"checkpoint in {self.workdir}{'' if step is None else f' at step {step}'}: "
                f"{self._cause(error)}; checkpoints still whole: {self._steps('checkpoints')}. Make room and "
                "run the same command again"
            ) from error

    def _free(self) -> int | None:
        """Bytes free on the disk; None in a bucket."""
        return None if storage.is_remote(self.workdir) else shutil.disk_usage(self.workdir).free

    def _cause(self, error: BaseException) -> str:
        reason, free = " ".join(str(error).split()), self._free()
        if free is not None and any(word in reason for word in _FULL):
            return (
                f"no space on the disk, or in a quota: it needs some {self._needed / 1e6:.1f} MB, and "
                f"{free / 1e6:.1f} MB of the disk are free"
            )
        return f"could not be written ({type(error).__name__}: {reason[:300]})"

    # -- reading --

    def restore(self, step: int, model: Tree, training: Tree) -> tuple[Tree, Tree]:
        """The model and training items of `step`, laid out like the given abstract trees.

        Raises:
            DamagedError: they are not what was saved.
            UserError: the checkpoint is of another model; the differing leaves are named.
        """
        wanted = {"model": model, "training": training}
        items = checkpoint_files.read(self.workdir / "checkpoints" / str(step), wanted)
        return items["model"], items["training"]

    def resume(self, model: Tree, training: Tree) -> tuple[int, Tree, Tree] | None:
        """Step, model and training items of the latest checkpoint that is whole; None where there is none.

        Later ones that are damaged are moved to `WORKDIR/damaged/`, with a warning; so is a damaged best one.

        Raises:
            UserError: there are checkpoints, and all are damaged (none is moved), or of another model.
        """
        damaged: dict[int, DamagedError] = {}
        for step in reversed(collectives.from_process_0(self._steps("checkpoints"))):
            try:
                items = self.restore(step, model, training)
            except DamagedError as error:
                damaged[step] = error
                continue
            for bad, reason in damaged.items():
                self._put_aside("checkpoints", bad, reason, f"going on from step {step}")
            self._check_best()
            return step, *items
        if damaged:
            raise UserError(
                f"--workdir={self.workdir}: every checkpoint is damaged ({_reasons(damaged)}); nothing was "
                "changed. Bring back a copy of one, or start again in another --workdir"
            )
        self._check_best()
        return None

    def _check_best(self) -> None:
        for step in collectives.from_process_0(self._steps("best")):
            problem = None
            try:
                checkpoint_files.read_meta(self.workdir / "best" / str(step))
            except DamagedError as error:
                problem = error
            if collectives.from_process_0([int(problem is not None)])[0]:
                reason = problem or DamagedError(f"checkpoint {self.workdir}/best/{step} is damaged")
                self._put_aside("best", step, reason, "the next evaluation saves a new one")

    def _put_aside(self, folder: str, step: int, reason: DamagedError, then: str) -> None:
        """Moves a damaged checkpoint to a free name in `WORKDIR/damaged/`, with a warning."""
        if jax.process_index() == 0:
            name = str(step) if folder == "checkpoints" else f"{folder}-{step}"
            target, number = self.workdir / "damaged" / name, 1
            while target.exists():
                target, number = target.with_name(f"{name}.{number}"), number + 1
            try:
                target.parent.mkdir(exist_ok=True)
                (self.workdir / folder / str(step)).rename(target)
            except OSError as error:
                raise UserError(f"{reason}; and it cannot be moved to {target} ({error})") from error
            warn(f"{reason}; moved to {target}; {then}")
        collectives.barrier(f"moved {folder}/{step}")
        self._managers[folder].reload()

    def table(self, step: int) -> LabelTable:
        """The label table that the checkpoint of `step` was saved with."""
        return _table(self.workdir / "checkpoints" / str(step))

    def find(self, which: str) -> tuple[str, int]:
        """The folder (`checkpoints` or `best`) and step that `which` means: `latest`, `best` or a step.

        Raises:
            UserError: there is no such checkpoint; those that exist are listed.
        """
        steps = {folder: self._steps(folder) for folder in _FOLDERS}
        if which == "latest" and steps["checkpoints"]:
            return "checkpoints", steps["checkpoints"][-1]
        if which == "best" and steps["best"]:
            return "best", steps["best"][-1]
        for folder, present in steps.items():
            if which.isdigit() and int(which) in present:
                return folder, int(which)
        raise UserError(
            f"--checkpoint={which}: not in {self.workdir}; it holds steps {steps['checkpoints']}, "
            f"best {steps['best']}"
        )

    def restore_model(self, which: str, model: Tree) -> tuple[int, Tree, LabelTable]:
        """The step, the model item and the label table of the checkpoint that `which` means (see `find`).

        Where the latest is damaged, the one before it is taken, with a warning.

        Raises:
            DamagedError: the one that was named, the best one, or every one, is damaged.
            UserError: there is no such checkpoint, or it is of another model.
        """
        folder, step = self.find(which)
        steps, damaged = [step], {}
        if which == "latest":
            steps = collectives.from_process_0([s for s in self._steps(folder) if s <= step])[::-1]
        for candidate in steps:
            path = self.workdir / folder / str(candidate)
            try:
                items = checkpoint_files.read(path, {"model": model})
            except DamagedError as error:
                damaged[candidate] = error
                continue
            for reason in damaged.values():
                if jax.process_index() == 0:
                    warn(f"{reason}; taking step {candidate} instead")
            return candidate, items["model"], _table(path)
        others = "--checkpoint=latest" if which == "best" else "another --checkpoint"
        raise DamagedError(f"--checkpoint={which}: {_reasons(damaged)}; use {others}")


def _table(path: epath.Path) -> LabelTable:
    return LabelTable.from_json(json.dumps(checkpoint_files.read_meta(path)["table"]))


def _is_of_another(error: BaseException | None) -> bool:
    """Whether a save failed because another process ended: then all are started again, without a user."""
    while error is not None and jax.process_count() > 1:
        words = str(error).lower()
        if isinstance(error, jax.errors.JaxRuntimeError) or "barrier" in words or "gloo" in words:
            return True
        error = error.__cause__ or error.__context__
    return False


def _reasons(damaged: Mapping[int, DamagedError]) -> str:
    return "; ".join(str(error) for error in damaged.values())


def meta(step: int, config: ConfigDict, table: LabelTable, **more: Any) -> dict[str, Any]:
    """The `meta` item: what a reader of the checkpoint needs besides arrays."""
    return {
        "step": step,
        "config": json.loads(configuration.to_json(config)),
        "table": json.loads(table.to_json()),
        **more,
    }
