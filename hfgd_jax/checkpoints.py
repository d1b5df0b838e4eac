"""Checkpoints of a run: `WORKDIR/checkpoints/STEP` (the latest N) and `WORKDIR/best/STEP` (the best mIoU).

Each holds the items `model` (params, batch_stats), `meta` (step, config, label table, mIoU where known) and,
in `checkpoints/`, `training` (step, opt_state, rng). The data position is the step itself. Orbax writes to a
temporary name and renames, so that a save cut short is never taken for a checkpoint.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict

from hfgd_jax import config as configuration
from hfgd_jax.data.labels import LabelTable
from hfgd_jax.errors import UserError

Tree = Any  # a pytree of arrays


class Checkpoints:
    """The checkpoints of one workdir. `read_only` never writes, creates or tidies."""

    def __init__(self, workdir: str | epath.Path, *, keep: int = 1, read_only: bool = False):
        self.workdir = epath.Path(workdir).expanduser().resolve()  # orbax wants it absolute
        self.keep, self.read_only = keep, read_only
        self._latest = self._manager("checkpoints", keep)
        self._best = self._manager("best", 1)

    def _manager(self, folder: str, keep: int) -> ocp.CheckpointManager | None:
        path = self.workdir / folder
        if self.read_only:
            if not path.exists():
                return None
            options = ocp.CheckpointManagerOptions(read_only=True)
        else:
            options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        # Named here so that a fresh process can read the items' metadata before it restores anything.
        handlers = {
            "model": ocp.StandardCheckpointHandler(),
            "training": ocp.StandardCheckpointHandler(),
            "meta": ocp.JsonCheckpointHandler(),
        }
        return ocp.CheckpointManager(path, options=options, item_handlers=handlers)

    def latest_step(self) -> int | None:
        """The last step saved, None where there is none."""
        return self._latest.latest_step() if self._latest else None

    def best_mean_iou(self) -> float | None:
        """The mIoU of the best checkpoint, None where there is none."""
        if self._best is None or self._best.latest_step() is None:
            return None
        return self._meta(self._best, self._best.latest_step())["mIoU"]

    def save(self, step: int, model: Tree, training: Tree, meta: dict[str, Any]) -> None:
        """Starts writing a checkpoint; returns before it is on disk. A step already saved is left alone.

        Raises:
            UserError: this or an earlier save failed; the earlier checkpoints are whole.
        """
        if step in self._latest.all_steps():
            return
        with self._reporting(step):
            self._latest.save(
                step,
                args=ocp.args.Composite(
                    model=ocp.args.StandardSave(model),
                    training=ocp.args.StandardSave(training),
                    meta=ocp.args.JsonSave(meta),
                ),
                force=True,
            )

    def save_best(self, step: int, model: Tree, meta: dict[str, Any]) -> None:
        """Like `save`, of the model alone, in place of the best one so far."""
        if step in self._best.all_steps():
            return
        with self._reporting(step):
            self._best.save(
                step,
                args=ocp.args.Composite(model=ocp.args.StandardSave(model), meta=ocp.args.JsonSave(meta)),
                force=True,
            )

    def wait(self) -> None:
        """Returns when everything is on disk; raises UserError where it could not be written."""
        for manager in filter(None, (self._latest, self._best)):
            with self._reporting(None):
                manager.wait_until_finished()

    def close(self) -> None:
        """Waits for what is under way (its errors too) and lets go of the folders."""
        self.wait()
        for manager in filter(None, (self._latest, self._best)):
            manager.close()

    def restore(self, step: int, model: Tree, training: Tree) -> tuple[Tree, Tree]:
        """The model and training items of `step`, laid out like the given abstract trees.

        Raises:
            UserError: the checkpoint is of another model; the differing leaves are named.
        """
        self._check_leaves(self._latest, step, "model", model)
        self._check_leaves(self._latest, step, "training", training)
        restored = self._latest.restore(
            step,
            args=ocp.args.Composite(
                model=ocp.args.StandardRestore(model), training=ocp.args.StandardRestore(training)
            ),
        )
        return restored["model"], restored["training"]

    def find(self, which: str) -> tuple[str, int]:
        """The folder (`checkpoints` or `best`) and step that `which` means: `latest`, `best` or a step.

        Raises:
            UserError: there is no such checkpoint; those that exist are listed.
        """
        steps = {
            name: sorted(manager.all_steps()) if manager else []
            for name, manager in (("checkpoints", self._latest), ("best", self._best))
        }
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

    def restore_model(self, which: str, model: Tree) -> tuple[int, Tree]:
        """The step and the model item of the checkpoint that `which` means (see `find`)."""
        folder, step = self.find(which)
        manager = self._best if folder == "best" else self._latest
        self._check_leaves(manager, step, "model", model)
        args = ocp.args.Composite(model=ocp.args.StandardRestore(model))
        return step, manager.restore(step, args=args)["model"]

    def table(self, which: str) -> LabelTable:
        """The label table that the checkpoint's model was trained with."""
        folder, step = self.find(which)
        meta = self._meta(self._best if folder == "best" else self._latest, step)
        return LabelTable.from_json(json.dumps(meta["table"]))

    def _meta(self, manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
        return manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

    def _check_leaves(self, manager: ocp.CheckpointManager, step: int, item: str, wanted: Tree) -> None:
        saved = manager.item_metadata(step)[item]
        if saved is None:
            raise UserError(f"checkpoint {self.workdir} step {step}: has no {item!r}; it is damaged")
        have, want = _shapes(saved), _shapes(wanted)
        names = [k for k in sorted(have | want, reverse=True) if have.get(k) != want.get(k)]
        wrong = [f"{k}: saved {have.get(k)}, wanted {want.get(k)}" for k in names]
        if wrong:
            more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
            raise UserError(
                f"checkpoint {self.workdir} step {step}: of another model; these leaves differ: "
                f"{'; '.join(wrong[:8])}{more}. Use the config it was trained with"
            )

    @contextlib.contextmanager
    def _reporting(self, step: int | None) -> Iterator[None]:
        """Turns whatever a save died of into one line that says what is left."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # tensorstore and orbax raise many kinds
            whole = sorted(self._latest.all_steps(read=True)) if self._latest else []
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"checkpoint in {self.workdir}{'' if step is None else f' at step {step}'}: could not be "
                f"written ({type(error).__name__}: {reason}); checkpoints still whole: {whole}. "
                "Make room and run the same command again"
            ) from error


def _shapes(tree: Tree) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path): tuple(
            leaf.shape
        )
        for path, leaf in leaves
    }


def meta(step: int, config: ConfigDict, table: LabelTable, **more: Any) -> dict[str, Any]:
    """The `meta` item: what a reader of the checkpoint needs besides arrays."""
    return {
        "step": step,
        "config": json.loads(configuration.to_json(config)),
        "table": json.loads(table.to_json()),
        **more,
    }
