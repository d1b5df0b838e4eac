"""Scores of a model at the label's own resolution: one checkpoint, several, or a run's as they appear."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Int64, UInt8
from ml_collections import ConfigDict

from hfgd_jax import config as configuration
from hfgd_jax.data import pipeline
from hfgd_jax.data.prepared import Split
from hfgd_jax.errors import UserError
from hfgd_jax.evaluation import metrics
from hfgd_jax.evaluation.boundaries import Details
from hfgd_jax.inference.tiles import TiledPredictor
from hfgd_jax.inference.views import Inference, OfRows, Variables, mask_of
from hfgd_jax.runs.checkpoints import Checkpoints
from hfgd_jax.runs.log import write_metrics
from hfgd_jax.runs.system import load, open_data
from hfgd_jax.runtime import collectives, sharding, storage
from hfgd_jax.runtime.progress import Doing
from hfgd_jax.runtime.signals import Stop
from hfgd_jax.runtime.stall import NO_LIMIT, StallLimit

# Counts are int32 on the device; they go to int64 on the host before a class pair can pass 2**31 pixels.
_FLUSH_PIXELS = 2**30
_POLL = 5.0  # seconds between two looks at a watched run
_RECORD = "evaluations.jsonl"


@dataclasses.dataclass(frozen=True)
class Counts:
    """What an evaluation counted: the confusion matrix, rows are truth, and details where asked for."""

    matrix: Int64[np.ndarray, "k k"]
    details: Details | None

    def summary(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """`metrics.summarize`, and `Details.summary` where there are details."""
        more = self.details.summary(classes) if self.details else {}
        return metrics.summarize(self.matrix, classes) | more

    def table(self, classes: tuple[str, ...]) -> str:
        """The printable table of classes."""
        return metrics.table(self.matrix, classes, self.details.columns() if self.details else None)


class Evaluator:
    """The compiled evaluation of one model on one mesh; a new shape of batch compiles once.

    Attributes:
        inference: from images to logits; `inference.shapes` are those that were compiled.
    """

    def __init__(self, model: nn.Module, config: ConfigDict, mesh: Mesh):
        num_classes, rows = config.data.num_classes, sharding.batch_sharding(mesh)
        self.config, self.mesh, self.inference = config, mesh, Inference(model, config)

        def count(matrix, label, predicted):
            return matrix + metrics.confusion_matrix(label, predicted, num_classes)[None]

        # Each device counts its own rows and the sum is made at the end: no program waits for another device.
        # Two that do, at once on a CPU's few threads, may wait for each other for ever.
        spread = jax.shard_map(count, mesh=mesh, in_specs=rows.spec, out_specs=rows.spec, check_vma=False)
        self._count = jax.jit(spread, donate_argnums=0)
        shape = (mesh.size, num_classes, num_classes)
        self._placed = jax.jit(lambda found: found, donate_argnums=0, out_shardings=rows)
        self._zero = jax.jit(lambda: jnp.zeros(shape, jnp.int32), out_shardings=rows)

    def score(
        self,
        variables: Variables,
        split: Split,
        mean_pixel: np.ndarray,
        should_stop: Callable[[], bool] = lambda: False,
        on_batch: Callable[[int], None] = lambda images: None,
        stall: StallLimit = NO_LIMIT,
    ) -> Counts | None:
        """Counts the whole split, each image once; None where stopped. The counts are of all processes.

        Args:
            variables: `params` and `batch_stats` on the mesh.
            split: what to score.
            mean_pixel: `[3]` RGB 0-255, the padding.
            should_stop: asked before each batch.
            on_batch: called after each batch with the number of this process's images done.
            stall: limits a batch's data and its computation, but not compiling.
        """
        total = np.zeros((self.config.data.num_classes,) * 2, np.int64)
        details = Details(self.config.data.num_classes) if self.config.eval.details else None
        matrix, pixels, images, waiting = self._zero(), 0, 0, None
        # Whole on every device, once, so that no collective is left in the loop.
        variables = sharding.gathered(self.mesh, variables)
        with self.batches(split, mean_pixel) as batches:
            name = batches.name
            for batch in stall.batches(batches, name):
                if should_stop():
                    return None
                masks, label = self.each(_masks, variables, batch)  # compiles where the shape is new
                matrix = self._count(matrix, label, masks)
                with stall.limit(f"evaluation of {name}: nothing has moved after {images} images"):
                    if waiting:  # one batch late: the devices never wait for the host, nor run far ahead
                        _finish(details, *waiting)
                    waiting = masks, batch
                    images += int((batch["index"] >= 0).sum())
                    pixels += batch["label"].size * jax.process_count()
                    if pixels > _FLUSH_PIXELS:
                        total += _local(matrix).astype(np.int64).sum(0)
                        matrix, pixels = self._zero(), 0
                    on_batch(images)
        with stall.limit(f"evaluation of {name}: nothing has moved after {images} images"):
            if waiting:
                _finish(details, *waiting)
            if details is not None:
                details.counts = collectives.sum_over_processes(details.counts)
            total += _local(matrix).astype(np.int64).sum(0)
            return Counts(collectives.sum_over_processes(total), details)

    def predict_image(
        self, variables: Variables, image: UInt8[np.ndarray, "h w 3"], mean_pixel: np.ndarray
    ) -> UInt8[np.ndarray, "h w"]:
        """Train ids of an RGB image as it is stored: scaled and padded as in evaluation.

        `variables` are this process' own (`sharding.local_copy`): other processes take no part.
        """
        return TiledPredictor(self.inference, variables, mean_pixel)(image).mask

    def batches(self, split: Split, mean_pixel: np.ndarray, *, originals: bool = False) -> pipeline.Batches:
        """This process's part of the split's batches, as of `pipeline.eval_batches`."""
        process_index, process_count = sharding.process_share(self.mesh)
        return pipeline.eval_batches(
            split,
            batch_size=sharding.round_up_batch_size(self.config.eval.batch_size, self.mesh),
            mean_pixel=mean_pixel,
            scales=self.inference.scales,
            geometry=self.config.model.geometry,
            process_index=process_index,
            process_count=process_count,
            threads=self.config.data.threads,
            workers=self.config.data.workers,
            skip_corrupt=self.config.data.skip_corrupt,
            originals=originals,
        )

    def each(
        self, function: OfRows, variables: Variables, batch: Mapping[str, Any]
    ) -> tuple[Any, UInt8[jax.Array, "b h w"]]:
        """What a function of the pixels' logits and labels gives for a batch, and the labels; on the mesh.

        Args:
            function: of rows of logits `[b, rows, w, k]` and of labels `[b, rows, w]` (`Inference.each`).
            variables: `params` and `batch_stats` on the mesh.
            batch: of `batches`.
        """
        views = tuple(sharding.global_batch(self.mesh, view) for view in batch["views"])
        rest = sharding.global_batch(self.mesh, {key: batch[key] for key in ("label", "size")})
        canvas = batch["label"].shape[1:]
        found = self.inference.each(function, variables, views, rest["size"], canvas, rest["label"])
        return self._placed(found), rest["label"]


def _masks(logits: jax.Array, label: jax.Array) -> jax.Array:
    return mask_of(logits)


def _finish(details: Details | None, masks: jax.Array, batch: Mapping[str, Any]) -> None:
    """Waits for a batch's masks and counts the details of this process's rows, where they are wanted."""
    if details is None:
        masks.block_until_ready()
        return
    rows = zip(_local(masks), batch["label"], batch["size"], batch["index"], strict=True)
    for mask, label, (h, w), index in rows:
        if index >= 0:
            details.add(np.ascontiguousarray(label[:h, :w]), np.ascontiguousarray(mask[:h, :w]))


def _local(x: jax.Array) -> np.ndarray:
    """This process's rows of an array whose first axis lies over the mesh."""
    rows = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(rows[start]) for start in sorted(rows)])


def settings(config: ConfigDict) -> dict[str, Any]:
    """What an evaluation's scores depend on besides the checkpoint, ready for JSON."""
    return {
        "split": config.data.eval_split,
        "scales": [float(scale) for scale in config.eval.scales],
        "flip": bool(config.eval.flip),
        "window": list(config.eval.window),
        "window_overlap": float(config.eval.window_overlap),
        "branch": config.eval.branch,
        "details": bool(config.eval.details),
    }


def run(config: ConfigDict, workdir: str, checkpoint: str) -> int:
    """Scores checkpoints on `data.eval_split`; returns the exit code.

    Args:
        config: of the run.
        workdir: where the run is.
        checkpoint: `latest`, `best`, a step; several of these, joined by commas; or `watch`: every
            checkpoint there is, and every new one as it appears, until that of the run's last step is done
            or a signal comes.

    Prints the table of classes and adds a line to `WORKDIR/evaluations.jsonl` for each; a single checkpoint's
    scores go to `WORKDIR/metrics.json` too, which otherwise is the training's.

    Raises:
        UserError: a config that is not valid, no such checkpoint, or a split without labels.
    """
    configuration.validate(config)
    stall = StallLimit(config.train.stall_timeout, epath.Path(workdir).expanduser())
    with stall, Stop().listening() as stop:
        scorer = _CheckpointScorer(config, workdir, stop, stall)
        if checkpoint == "watch":
            _watch(scorer)
        else:
            names, lines = [name.strip() for name in checkpoint.split(",")], []
            saved = Checkpoints(workdir, read_only=True)
            for name in names:
                saved.find(name)  # before hours are spent on the others
            saved.close()
            for name in names:
                done = scorer(name)
                if done is None:
                    break
                step, summary, matrix = done
                lines.append(f"{name:>12}  step {step:>8}  mIoU {summary['mIoU'] or 0.0:.4f}")
                if len(names) == 1:
                    write_metrics(scorer.workdir, step, summary, matrix)
            if len(names) > 1:
                scorer.info("\n".join(lines))
        if stop():
            scorer.info(f"stopped by {stop.signal_name}; nothing more was written")
    return stop.exit_code


class _CheckpointScorer:
    """Scores checkpoints of one run, one after the other, with what was compiled for the first."""

    def __init__(self, config: ConfigDict, workdir: str, stop: Stop, stall: StallLimit):
        self.config, self.stop, self.stall = config, stop, stall
        self.workdir = epath.Path(workdir).expanduser()
        self.split = open_data(config, config.data.eval_split)
        if not self.split.labelled:
            raise UserError(
                f"config.data.eval_split={config.data.eval_split!r}: this split of {config.data.dataset!r} "
                f"has no labels; use --mode=predict --input=split:{config.data.eval_split}"
            )
        self.settings = settings(config)
        self._evaluator: Evaluator | None = None

    def __call__(self, which: str) -> tuple[int, dict[str, Any], np.ndarray] | None:
        """Step, summary and confusion matrix of a checkpoint, printed and recorded; None where stopped."""
        system, variables, step, table = load(self.config, str(self.workdir), which)
        table.check_order(self.split.table)
        if self._evaluator is None:
            self._evaluator = Evaluator(system.model, self.config, system.mesh)
        with Doing(f"evaluating step {step}", -(-len(self.split) // jax.process_count())) as doing:
            scores = self._evaluator.score(
                variables, self.split, system.mean_pixel, self.stop, doing, self.stall
            )
        if scores is None:
            return None
        classes = self.split.table.classes
        summary, shapes = scores.summary(classes), len(self._evaluator.inference.shapes)
        data = self.config.data
        self.info(
            f"{scores.table(classes)}\n"
            f"step {step}, {len(self.split)} images of {data.dataset}/{data.eval_split}; "
            f"the model was compiled for {shapes} {'shape' if shapes == 1 else 'shapes'}\n"
            f"mIoU: {summary['mIoU'] or 0.0:.4f}"
        )
        if jax.process_index() == 0:
            lines = storage.Lines(self.workdir / _RECORD)
            lines.add({"step": step} | self.settings | summary)
            lines.flush()
        return step, summary, scores.matrix

    def recorded(self) -> set[int]:
        """Steps that `evaluations.jsonl` has under these settings."""
        return {
            record["step"]
            for record in storage.records(self.workdir / _RECORD)
            if all(record.get(key) == value for key, value in self.settings.items())
        }

    def info(self, text: str) -> None:
        """A line of process 0."""
        if jax.process_index() == 0:
            print(text, flush=True)


def _watch(scorer: _CheckpointScorer) -> None:
    """Scores the run's checkpoints in order as they appear; a step that is already recorded is left out."""
    final, folder = scorer.config.train.steps, scorer.workdir / "checkpoints"
    scorer.info(f"watching {folder} up to step {final}")
    done = scorer.recorded()
    while not scorer.stop():
        present = set(ocp.utils.checkpoint_steps(folder)) if folder.exists() else set()
        # Processes must score the same step: the next one of process 0.
        step = collectives.from_process_0([min(present - done, default=-1)])[0]
        if step >= 0:
            try:
                scorer(str(step))
            except (ValueError, OSError) as error:  # UserError is a ValueError, and so are some of orbax's
                if (folder / str(step)).exists():
                    raise
                scorer.info(f"step {step} was removed before it could be scored ({error})")
            if not scorer.stop():
                done.add(step)
        elif final in done:
            return
        else:
            scorer.stop.wait(_POLL)
