"""What is kept of each image for the report: counts, doubtful regions and small pictures.

`Collector.add` takes one image after the other and writes its pictures; what it keeps does not depend on the
images' sizes, but on the classes and regions in them.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from hfgd_jax.data.labels import IGNORE, LabelTable
from hfgd_jax.errors import UserError
from hfgd_jax.evaluation import metrics
from hfgd_jax.evaluation.boundaries import Details
from hfgd_jax.report import pictures
from hfgd_jax.report.quality import Region, regions, softmin_score

FOLDERS = {
    "thumbnail": "webp",
    "image": "webp",
    "label": "png",
    "prediction": "png",
    "mistakes": "png",
    "confidence": "png",
    "compared": "png",
}
PAIRS = 24  # confusions kept of an image, the largest


@dataclasses.dataclass(frozen=True)
class Options:
    """What a report keeps.

    Attributes:
        side: pixels of the longer side of images and masks, at most.
        thumbnail: the same of thumbnails.
        quality: of WebP, 1 to 100.
        doubt: probability of the label's class up to which a label is doubted.
        regions: doubtful regions kept of an image.
    """

    side: int = 480
    thumbnail: int = 160
    quality: int = 60
    doubt: float = 0.01
    regions: int = 5


class Seen(NamedTuple):
    """An image, its label and what was predicted.

    `mask` and `compared` (of the second run; None without one) are train ids, `confidence` the probability
    of the mask's class and `given` that of the label's, in [0, 1]; where the label is ignored, `given` has
    no meaning.
    """

    id: str
    image: UInt8[np.ndarray, "h w 3"]
    label: UInt8[np.ndarray, "h w"]
    mask: UInt8[np.ndarray, "h w"]
    confidence: Float32[np.ndarray, "h w"]
    given: Float32[np.ndarray, "h w"]
    compared: UInt8[np.ndarray, "h w"] | None = None


class ImageScores(NamedTuple):
    """The scores of one image, in [0, 1]; None where nothing is labelled."""

    iou: float | None  # mean over the classes in the mask or in the label
    accuracy: float | None


@dataclasses.dataclass(frozen=True)
class Kept:
    """What is kept of an image.

    Attributes:
        id: of the record.
        size: height and width as stored.
        scores: the run's; `compared`: the second run's.
        quality: of the label (see `quality.softmin_score`).
        classes: `[n, 4]` of the classes in mask or label: train id, labelled, predicted and right pixels.
        pairs: `[n, 3]` of the largest confusions: label's and mask's train id, pixels.
        differ: share of the labelled pixels where the two runs differ.
        regions: the most doubtful of the label.
    """

    id: str
    size: tuple[int, int]
    scores: ImageScores
    quality: float | None
    classes: Int64[np.ndarray, "n 4"]
    pairs: Int64[np.ndarray, "m 3"]
    regions: tuple[Region, ...]
    compared: ImageScores | None = None
    differ: float | None = None


class Counted:
    """The counts of one run over all images: `matrix`, int64 `[k, k]` (rows are truth), and `details`."""

    def __init__(self, num_classes: int):
        self.matrix = np.zeros((num_classes, num_classes), np.int64)
        self.details = Details(num_classes)

    def add(self, label: UInt8[np.ndarray, "h w"], mask: UInt8[np.ndarray, "h w"]) -> np.ndarray:
        """Counts an image; returns its own matrix."""
        own = metrics.image_matrix(label, mask, len(self.matrix))
        self.matrix += own
        self.details.add(label, mask)
        return own


class Collector:
    """Keeps what a report needs of each image, and writes its pictures into `folder/pictures`.

    Attributes:
        table: the classes.
        options: as given.
        images: what was kept, in the order of `add`.
        counted: of the run; `compared`: of the second run, None where there is none.
    """

    def __init__(self, folder: Path, table: LabelTable, options: Options, *, compare: bool):
        self.table, self.options, self.folder = table, options, folder / "pictures"
        self.images: list[Kept] = []
        self.counted = Counted(table.num_classes)
        self.compared = Counted(table.num_classes) if compare else None
        for name in FOLDERS:
            if compare or name != "compared":
                (self.folder / name).mkdir(parents=True, exist_ok=True)

    def add(self, seen: Seen) -> None:
        """Counts an image and writes its pictures, `pictures/KIND/NUMBER.webp` or `.png`."""
        label, mask, options = np.ascontiguousarray(seen.label), np.ascontiguousarray(seen.mask), self.options
        own, labelled = self.counted.add(label, mask), label != IGNORE
        compared = differ = None
        if self.compared is not None:
            assert seen.compared is not None, "a report of two runs wants both masks"
            other = np.ascontiguousarray(seen.compared)
            compared = scores_of(self.compared.add(label, other))
            differ = float((other != mask)[labelled].mean()) if labelled.any() else None
        doubtful = regions(
            label, mask, seen.confidence, seen.given, doubt=options.doubt, most=options.regions
        )
        self._write(len(self.images), seen)
        self.images.append(
            Kept(
                seen.id,
                label.shape,
                scores_of(own),
                softmin_score(seen.given[labelled]),
                classes_of(own),
                pairs_of(own, PAIRS),
                tuple(doubtful),
                compared,
                differ,
            )
        )

    def _write(self, number: int, seen: Seen) -> None:
        o, palette = self.options, self.table.palette
        made = {
            "thumbnail": pictures.photo(seen.image, o.thumbnail, o.quality),
            "image": pictures.photo(seen.image, o.side, o.quality),
            "label": pictures.mask(seen.label, palette, o.side),
            "prediction": pictures.mask(seen.mask, palette, o.side),
            "mistakes": pictures.mistakes(seen.label, seen.mask, seen.given, o.doubt, o.side),
            "confidence": pictures.certainty(seen.confidence, max(1, o.side // 2)),
        }
        if self.compared is not None and seen.compared is not None:
            made["compared"] = pictures.mask(seen.compared, palette, o.side)
        for name, data in made.items():
            path = self.folder / name / f"{number}.{FOLDERS[name]}"
            try:
                path.write_bytes(data)
            except OSError as error:
                raise UserError(f"--output: cannot write {path.name} of {name} ({error})") from error


def scores_of(matrix: Int64[np.ndarray, "k k"]) -> ImageScores:
    """mIoU and pixel accuracy of a matrix, as `metrics.summarize` has them."""
    found = metrics.summarize(matrix, [str(k) for k in range(len(matrix))])
    return ImageScores(found["mIoU"], found["pixel_accuracy"])


def classes_of(matrix: Int64[np.ndarray, "k k"]) -> Int64[np.ndarray, "n 4"]:
    """Train id, labelled, predicted and right pixels of the classes that a matrix has."""
    labelled, predicted = matrix.sum(1), matrix.sum(0)
    present = np.flatnonzero(labelled + predicted)
    return np.stack([present, labelled[present], predicted[present], np.diagonal(matrix)[present]], axis=1)


def pairs_of(matrix: Int64[np.ndarray, "k k"], most: int) -> Int64[np.ndarray, "m 3"]:
    """Truth, prediction and pixels of the largest confusions of a matrix, the largest first."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    rows, columns = np.unravel_index(order, wrong.shape)
    counts = wrong[rows, columns]
    return np.stack([rows, columns, counts], axis=1)[counts > 0].astype(np.int64)
