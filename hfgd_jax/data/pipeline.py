"""Batches for training and evaluation.

The n-th sample of a training run is a function of (seed, n) alone: n gives the epoch and the place in the
epoch's shuffled order, and seeds the augmentation. Step s takes the samples s * B to (s + 1) * B - 1, of
which process p takes the p-th part of B / P. Hence the global batch does not depend on the number of
processes, threads or workers, and a run that stopped after s steps goes on with `start=s`. grain moves the
data: threads, worker processes and prefetching.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from hfgd_jax.data import augment, canvases
from hfgd_jax.data.labels import IGNORE
from hfgd_jax.data.prepared import CorruptRecordError, Split
from hfgd_jax.errors import UserError

Batch = dict[str, np.ndarray]

_END = 2**48  # samples: as good as endless
_EVAL_PREFETCH = 2
_CORRUPT_IN_A_ROW = 64  # unreadable records in a row after which the files are taken for lost


class Batches(Iterator[Batch]):
    """An iterator of batches that can be closed, early too; a context manager.

    Args:
        dataset: of batches.
        split: that they come from.
        length: how many there are; None: endless.
        start: number of the first batch, for messages.

    Attributes:
        name: of data set and split, for messages.
        length: as given.

    Raises:
        UserError: from `next`, where a worker process has died, or nothing of the split can be read any more.
    """

    def __init__(
        self,
        dataset: grain.IterDataset,
        split: Split,
        *,
        length: int | None = None,
        start: int = 0,
    ) -> None:
        self._iterator = iter(dataset)
        self.name, self._number = f"data set {split.dataset!r}, split {split.split!r}", start
        self._corrupt, self._most_corrupt = 0, min(len(split), _CORRUPT_IN_A_ROW)
        self.length = length

    def __next__(self) -> Batch:
        try:
            batch = next(self._iterator, None)
        except RuntimeError as error:
            if "Worker process" not in str(error):
                raise
            raise UserError(
                f"{self.name}, batch {self._number}: a data worker has died ({error}), most often for want "
                "of memory; use fewer config.data.workers or a smaller config.data.prefetch"
            ) from error
        if batch is None:
            raise StopIteration
        self._number += 1
        self._count_corrupt(batch)
        return batch

    def _count_corrupt(self, batch: Batch) -> None:
        """Raises UserError where too many records in a row are unreadable: then the files are gone."""
        for corrupt in batch["corrupt"][batch["index"] >= 0]:
            self._corrupt = self._corrupt + 1 if corrupt else 0
        if self._most_corrupt and self._corrupt >= self._most_corrupt:
            raise UserError(
                f"{self.name}, batch {self._number - 1}: {self._corrupt} records one after the other cannot "
                "be read: more than config.data.skip_corrupt is for. Was the data set removed or cut "
                "short?"
            )

    def close(self) -> None:
        """Stops threads and worker processes."""
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def train_batches(
    split: Split,
    data_config: Any,
    *,
    batch_size: int,
    seed: int,
    mean_pixel: Sequence[float] | np.ndarray,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Endless shuffled and augmented batches, from step `start` on.

    Args:
        split: a labelled split.
        data_config: the `data` part of the config.
        batch_size: the global batch, over all processes.
        seed: of the order and the augmentation.
        mean_pixel: RGB, 0-255; fills what lies outside an image.
        start: steps already taken.
        process_index, process_count: this process, and how many share the global batch.

    Returns:
        Dicts of `image` uint8 `[b, H, W, 3]` RGB, `label` uint8 `[b, H, W]` (255 ignored), `index` int32
        `[b]`, `corrupt` bool `[b]`, where b = batch_size / process_count. A corrupt example is the mean
        pixel throughout, all ignored. Worker processes need `if __name__ == "__main__":` around the
        program that calls this, and absl flags parsed.

    Raises:
        UserError: the split is empty or has no labels, or the batch cannot be shared out. From `next`, unless
            `data_config.skip_corrupt`: a record cannot be read (CorruptRecordError names it). See `Batches`.
    """
    rows = _rows(batch_size, process_index, process_count)
    if not split.labelled:
        raise UserError(f"data set {split.dataset!r}: split {split.split!r} has no labels to train on")
    if len(split) == 0:
        raise UserError(f"data set {split.dataset!r}: split {split.split!r} is empty")
    settings = augment.Settings(
        crop=tuple(data_config.crop),
        mean_pixel=tuple(float(v) for v in mean_pixel),
        input_scale=float(data_config.input_scale),
        scale_range=tuple(data_config.scale_range),
        scale_step=float(data_config.scale_step),
        flip=float(data_config.flip),
        photometric=str(data_config.photometric),
    )
    load = _TrainLoader(
        split, settings, seed, batch_size, rows.start, len(rows), bool(data_config.skip_corrupt)
    )
    dataset = grain.MapDataset.range(start * len(rows), _END).map(load).batch(len(rows))
    options = grain.ReadOptions(
        num_threads=data_config.threads, prefetch_buffer_size=max(data_config.prefetch, data_config.threads)
    )
    dataset = _with_workers(dataset.to_iter_dataset(options), data_config.workers)
    return Batches(dataset, split, start=start)


def _with_workers(dataset: grain.IterDataset, workers: int) -> grain.IterDataset:
    if workers == 0:
        return dataset
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    return dataset.mp_prefetch(options)


def _rows(batch_size: int, process_index: int, process_count: int) -> range:
    """Rows of the global batch that belong to a process."""
    if batch_size % process_count or batch_size < process_count:
        raise UserError(
            f"batch size {batch_size}: cannot be shared by {process_count} processes; want a multiple"
        )
    if not 0 <= process_index < process_count:
        raise UserError(f"process {process_index}: want one from 0 to {process_count - 1}")
    share = batch_size // process_count
    return range(process_index * share, (process_index + 1) * share)


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng((seed, 0, epoch)).permutation(length).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class _TrainLoader:
    """Maps the number of a sample of this process to its example."""

    split: Split
    settings: augment.Settings
    seed: int
    batch_size: int
    first_row: int
    rows: int
    skip_corrupt: bool

    def __call__(self, local: int) -> Batch:
        step, row = divmod(local, self.rows)
        sample = step * self.batch_size + self.first_row + row
        epoch, place = divmod(sample, len(self.split))
        index = int(_order(self.seed, epoch, len(self.split))[place])
        try:
            example = self.split.example(index)
        except CorruptRecordError:
            if not self.skip_corrupt:
                raise
            image = np.empty((0, 0, 3), np.uint8)
            image = augment.pad_image(image, self.settings.crop, self.settings.mean_pixel)
            label, corrupt = np.full(self.settings.crop, IGNORE, np.uint8), True
        else:
            rng = np.random.default_rng((self.seed, 1, sample))
            image, label = augment.augment(example["image"], example["label"], rng, self.settings)
            corrupt = False
        return {"image": image, "label": label, "index": np.int32(index), "corrupt": np.bool_(corrupt)}


def eval_batches(
    split: Split,
    *,
    batch_size: int,
    mean_pixel: Sequence[float] | np.ndarray,
    scales: Sequence[float] = (1.0,),
    geometry: str = "align_corners",
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 4,
    workers: int = 0,
    skip_corrupt: bool = False,
    originals: bool = False,
) -> Batches:
    """Batches of every record once, in a fixed order, on few canvas shapes; as many on every process.

    A record is decoded once and its image resized to each of the scales (as in training, see `augment`);
    labels keep their own size. All lie at the top left of canvases (see `canvases.plan`) that are filled up
    with the mean pixel and with 255. All rows of a global batch have the same canvases; where records run
    out, filler rows complete the batch.

    Args:
        split: labelled or not; without labels the label is all 255 at the image's own size.
        batch_size: the global batch, over all processes.
        mean_pixel: RGB, 0-255.
        scales: of the image; each is one view.
        geometry: `align_corners` (canvas sides are 32k + 1) or `half_pixel` (32k).
        process_index, process_count: this process, and how many share the global batch.
        threads: for decoding, in this process and in each worker.
        workers: processes that decode in place of this one (see `train_batches`).
        skip_corrupt: make an unreadable record an all-ignored one instead of raising.
        originals: give the images as they are stored, too.

    Returns:
        Dicts of `views`, a tuple with for each scale a dict of `image` uint8 `[b, H, W, 3]` and `image_size`
        int32 `[b, 2]` (height and width of the scaled image in its canvas); `label` uint8 `[b, h, w]`;
        `size` int32 `[b, 2]` (of the label in its canvas), `index` int32 `[b]` (-1: filler, with sizes 1x1
        and all ignored), `corrupt` bool `[b]`; where asked for, `original` uint8 `[b, h, w, 3]`, of the
        label's size. The iterator's `length` is the number of batches.

    Raises:
        UserError: the batch cannot be shared out; see also `Batches`. CorruptRecordError names an unreadable
            record.
    """
    rows = _rows(batch_size, process_index, process_count)
    sizes = _sizes(split, skip_corrupt)
    plan = canvases.plan(sizes, batch_size, [augment.as_fraction(scale) for scale in scales], geometry)
    mine = [(canvas, indices[row]) for canvas, indices in plan for row in rows]
    load = _EvalLoader(split, tuple(mean_pixel), tuple(map(float, scales)), skip_corrupt, originals)
    dataset = grain.MapDataset.source(mine).map(load).batch(len(rows))
    ahead = max(_EVAL_PREFETCH, threads) if len(scales) == 1 else _EVAL_PREFETCH  # views are large
    options = grain.ReadOptions(num_threads=min(threads, ahead), prefetch_buffer_size=ahead)
    # No more workers than batches.
    dataset = _with_workers(dataset.to_iter_dataset(options), min(workers, len(plan)))
    return Batches(dataset, split, length=len(plan))


def _sizes(split: Split, skip_corrupt: bool) -> list[tuple[int, int]]:
    sizes = []
    for index in range(len(split)):
        try:
            sizes.append(split.size(index))
        except CorruptRecordError:
            if not skip_corrupt:
                raise
            sizes.append((1, 1))
    return sizes


@dataclasses.dataclass(frozen=True)
class _EvalLoader:
    """Maps an entry of the plan to a row of the batch."""

    split: Split
    mean_pixel: tuple[float, ...]
    scales: tuple[float, ...]
    skip_corrupt: bool
    originals: bool

    def __call__(self, place: tuple[canvases.Canvas, int]) -> dict[str, Any]:
        canvas, index = place
        image, label = np.empty((0, 0, 3), np.uint8), np.full((1, 1), IGNORE, np.uint8)
        corrupt = False
        if index >= 0:
            try:
                example: Mapping[str, Any] = self.split.example(index)
            except CorruptRecordError:
                if not self.skip_corrupt:
                    raise
                corrupt = True
            else:
                image = example["image"]
                label = example.get("label", np.full(image.shape[:2], IGNORE, np.uint8))
        kept = {"original": augment.pad_image(image, canvas.label, self.mean_pixel)} if self.originals else {}
        return kept | {
            "views": views(image, self.scales, canvas, self.mean_pixel),
            "label": augment.pad_label(label, canvas.label),
            "size": np.array(label.shape, np.int32),
            "index": np.int32(index),
            "corrupt": np.bool_(corrupt),
        }


def views(
    image: augment.Image,
    scales: Sequence[float],
    canvas: canvases.Canvas,
    mean_pixel: Sequence[float] | np.ndarray,
) -> tuple[Batch, ...]:
    """An image at each scale on its canvas: `image` uint8 `[H, W, 3]` and `image_size` int32 `[2]`.

    An empty image is 1x1 of the mean pixel.
    """
    found = []
    for scale, size in zip(scales, canvas.images, strict=True):
        seen = augment.resize_image(image, scale) if image.size else image
        inside = np.maximum(np.array(seen.shape[:2], np.int32), 1)
        found.append({"image": augment.pad_image(seen, size, mean_pixel), "image_size": inside})
    return tuple(found)
