"""What a run says of each image of a split: its masks, and how sure it is, one image at a time.

The images come in the batches of an evaluation and through the same views, so that the counts of a report
are those of `hfgd eval`.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8
from ml_collections import ConfigDict

from hfgd_jax.data.prepared import Split
from hfgd_jax.errors import UserError
from hfgd_jax.evaluation.evaluator import Evaluator
from hfgd_jax.report.collect import Seen
from hfgd_jax.runs import system as systems
from hfgd_jax.runtime import sharding


class Judged(NamedTuple):
    """Train ids, the probability of each pixel's class, and that of its label's (0 where ignored)."""

    mask: UInt8[np.ndarray | Array, "*b h w"]
    confidence: Float32[np.ndarray | Array, "*b h w"]
    given: Float32[np.ndarray | Array, "*b h w"]


def judge(logits: Float[Array, "b h w k"], label: UInt8[Array, "b h w"]) -> Judged:
    """Reads masks and probabilities from logits, without an array of all probabilities."""
    total = jax.nn.logsumexp(logits, axis=-1)
    known = label < logits.shape[-1]
    place = jnp.where(known, label, 0)[..., None].astype(jnp.int32)
    own = jnp.take_along_axis(logits, place, axis=-1)[..., 0]
    return Judged(
        jnp.argmax(logits, -1).astype(jnp.uint8),
        jnp.exp(logits.max(-1) - total),
        jnp.where(known, jnp.exp(own - total), 0.0),
    )


def load(config: ConfigDict, workdir: str, checkpoint: str, split: Split) -> systems.Trained:
    """A run's checkpoint for the records of a split.

    Raises:
        UserError: no such checkpoint, or a model of other classes than the split's.
    """
    run = systems.load(config, workdir, checkpoint)
    table = run.table
    table.check_order(split.table)
    if table.classes != split.table.classes:
        raise UserError(
            f"{workdir}: its classes are not those of data set {split.dataset!r}: {table.num_classes} and "
            f"{split.table.num_classes}, the first {table.classes[0]!r} and {split.table.classes[0]!r}"
        )
    return run


class Row(NamedTuple):
    """A record of a split and what a run says of it; `image` is as it is stored, None where not asked for."""

    index: int
    image: UInt8[np.ndarray, "h w 3"] | None
    label: UInt8[np.ndarray, "h w"]
    judged: Judged


def stream(run: systems.Trained, split: Split, *, images: bool = False) -> Iterator[Row]:
    """Each record with what the run says of it, at the label's size, as evaluation computes it.

    Records that cannot be read are left out where the run has `data.skip_corrupt`.

    Raises:
        UserError: as of `pipeline.eval_batches`.
    """
    mesh = run.system.mesh
    evaluator = Evaluator(run.system.model, run.system.config, mesh)
    variables = sharding.gathered(mesh, run.variables)  # once
    with evaluator.batches(split, run.system.mean_pixel, originals=images) as batches:
        for batch in batches:
            found = [np.asarray(part) for part in evaluator.each(judge, variables, batch)[0]]
            for row in np.flatnonzero((batch["index"] >= 0) & ~batch["corrupt"]):
                place = (row, *map(slice, batch["size"][row]))
                image = batch["original"][place] if images else None
                judged_row = Judged(*(part[place] for part in found))
                yield Row(int(batch["index"][row]), image, batch["label"][place], judged_row)


@contextlib.contextmanager
def stored_masks(
    run: systems.Trained, split: Split, on_image: Callable[[int], Any]
) -> Iterator[Callable[[int], UInt8[np.ndarray, "h w"]]]:
    """A run's masks on disk, for the time of the block: a function from a record's index to its mask.

    Two runs may see the records in another order, and one model at a time is enough in memory.

    Args:
        run, split: as of `stream`.
        on_image: called with the number of images done.

    Raises:
        UserError: masks cannot be written, or as of `stream`.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = lambda index: str(Path(folder) / f"{index}.png")  # noqa: E731
        for done, row in enumerate(stream(run, split), start=1):
            if not cv2.imwrite(place(row.index), row.judged.mask):
                raise UserError(f"{folder}: cannot write a mask; is the disk of temporary files full?")
            on_image(done)
        del run  # and the memory of its model
        yield lambda index: cv2.imread(place(index), cv2.IMREAD_UNCHANGED)


def seen_by(
    run: systems.Trained, split: Split, compared: Callable[[int], np.ndarray] | None = None
) -> Iterator[Seen]:
    """Each image of a labelled split with what the run says of it, and a second run's mask."""
    for index, image, label, judged in stream(run, split, images=True):
        other = compared(index) if compared else None
        yield Seen(split.record_id(index), image, label, *judged, other)
