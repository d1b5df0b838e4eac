"""The builders' base class (`SegmentationBuilder`), and the records of raw data sets with their checks."""

import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import cv2
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Integer, UInt8

from hfgd_jax.data.builders import files
from hfgd_jax.data.labels import TABLES, LabelTable
from hfgd_jax.errors import UserError


class Record(Protocol):
    """One image of a raw data set and its label, either of which may be missing."""

    id: str

    @property
    def image_name(self) -> str | None:
        """The image's path or name, for messages; None where there is none."""

    @property
    def label_name(self) -> str | None:
        """The label's path or name, for messages; None where there is none."""

    def image_bytes(self) -> bytes:
        """The encoded image. Raises UserError where it cannot be read."""

    def raw_label(self) -> Integer[np.ndarray, "h w"]:
        """The label map in raw ids. Raises UserError where it cannot be read."""


@dataclasses.dataclass(frozen=True)
class FileRecord:
    """A record whose image and label are files; `read` reads the label."""

    id: str
    image: Path | None
    label: Path | None
    read: Callable[[Path], Integer[np.ndarray, "h w"]] = files.read_label

    @property
    def image_name(self) -> str | None:
        return None if self.image is None else str(self.image)

    @property
    def label_name(self) -> str | None:
        return None if self.label is None else str(self.label)

    def image_bytes(self) -> bytes:
        try:
            return self.image.read_bytes()
        except OSError as error:
            raise UserError(f"{self.image}: image cannot be read ({error.strerror})") from None

    def raw_label(self) -> Integer[np.ndarray, "h w"]:
        return self.read(self.label)


@dataclasses.dataclass(frozen=True)
class RawSplit:
    """The records of one split in raw form; an unlabelled split has no labels at all."""

    records: Sequence[Record]
    labelled: bool = True


@dataclasses.dataclass(frozen=True)
class Options:
    """How a folder without lists of its own is divided.

    Attributes:
        val_ratio: the share of the images that is for validation, above 0 and below 1.
        seed: of the choice.
    """

    val_ratio: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.val_ratio < 1:
            raise UserError(f"val_ratio={self.val_ratio}: want a share above 0 and below 1, such as 0.1")


DEFAULTS = Options()


def unmatched(record: Record, labelled: bool) -> str | None:
    """The message for an image without label or a label without image; None where both are there."""
    if record.image_name is None:
        return f"{record.label_name}: label without an image"
    if labelled and record.label_name is None:
        return f"{record.image_name}: image without a label"
    return None


def different_sizes(name: str, label: tuple[int, ...], image: tuple[int, int]) -> str | None:
    """The message for a label and an image of different sizes; None where the sizes are equal."""
    if tuple(label) == tuple(image):
        return None
    turned = "; is one of them turned by 90 degrees?" if label[0] != label[1] and label == image[::-1] else ""
    return f"{name}: label is {label[1]}x{label[0]}, but its image is {image[1]}x{image[0]}{turned}"


def checked(record: Record, table: LabelTable, labelled: bool) -> tuple[bytes, UInt8[np.ndarray, "h w"]]:
    """The encoded image and the label in train ids (1x1 where the split has no labels).

    Raises:
        UserError: an unreadable file, different sizes, or a value outside the table.
    """
    data = record.image_bytes()
    size = files.image_size(data, record.image_name)
    if not labelled:
        return data, np.full((1, 1), 255, np.uint8)
    raw = record.raw_label()
    if fault := different_sizes(record.label_name, raw.shape, size):
        raise UserError(fault)
    try:
        return data, table.to_train_ids(raw)
    except UserError as error:
        raise UserError(f"{record.label_name}: {error}") from None


def example(record: Record, table: LabelTable, labelled: bool) -> dict[str, Any]:
    """A record as TFDS takes it, checked and encoded. Raises UserError as `checked`."""
    data, label = checked(record, table, labelled)
    encoded = cv2.imencode(".png", label)[1].tobytes()
    # Bytes, since TFDS encodes arrays with TensorFlow.
    return {"id": record.id, "image": io.BytesIO(data), "label": io.BytesIO(encoded)}


def pairs(images: Path, labels: Path) -> list[Record]:
    """Files of two folders paired by stem, sorted; a file without a partner is a record with one side.

    Raises:
        UserError: as `files.by_key`, and where the folders look swapped.
    """
    found, masks = files.by_key(images, files.IMAGE_SUFFIXES), files.by_key(labels, (".png",))
    files.refuse_images_for_labels(labels, masks)
    return [FileRecord(stem, found.get(stem), masks.get(stem)) for stem in sorted(found | masks)]


def listed(names: Path, images: Path, labels: Path, suffix: str, mat_key: str = "") -> list[Record]:
    """The records that a list names, in its order: `images/NAME.jpg` and `labels/NAME` with the suffix.

    Args:
        names: the list.
        images, labels: the folders.
        suffix: of the labels.
        mat_key: the variable to read in `.mat` files.

    Raises:
        UserError: as `files.read_list`, and where the folders hold nothing of some names.
    """
    found = files.by_key(images, files.IMAGE_SUFFIXES), files.by_key(labels, (suffix,))
    read, wanted = files.label_reader(suffix, mat_key), files.read_list(names)
    absent = [name for name in wanted if name not in found[0] and name not in found[1]]
    if absent:
        raise UserError(f"{names}: neither image nor label in {images.parent} of: {files.listing(absent)}")
    return [FileRecord(name, found[0].get(name), found[1].get(name), read) for name in wanted]


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS builder over images and label maps.

    A data set is a subclass with `NAME` and `VERSION` (and a table in `labels.TABLES`, or its own `table`)
    that says in `splits` which records the raw folder holds.

    Records on disk: `id`; `image`, encoded as its owner distributes it; `label`, PNG of train ids (255
    ignored; 1x1 in splits without labels). The label table travels in the data set's metadata.
    """

    NAME: ClassVar[str]
    EMBEDDED: ClassVar[bool] = False  # needs no source
    DIVIDES: ClassVar[bool] = False  # heeds Options
    LAYOUT: ClassVar[str] = ""  # one line for messages and help
    COUNTS: ClassVar[Mapping[str, int]] = {}  # records by split, where the owners say how many there are

    def __init__(self, *, source: str = "", **kwargs: Any) -> None:
        self.source = Path(source)
        super().__init__(**kwargs)

    @classmethod
    def table(cls, source: Path) -> LabelTable:
        """The data set's label table, for the raw ids that the folder's files hold."""
        del source
        return TABLES[cls.NAME]

    @classmethod
    def splits(cls, source: Path, options: Options = DEFAULTS) -> Mapping[str, RawSplit]:
        """Records of the raw folder, by split, in a fixed order.

        Raises:
            UserError: the folder does not have the data set's layout.
        """
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(self.__doc__ or "").strip(),
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
                }
            ),
            metadata=tfds.core.MetadataDict(table=self.table(self.source).to_json()),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        del dl_manager
        return {name: self._generate_examples(split) for name, split in self.splits(self.source).items()}

    def _generate_examples(self, split: RawSplit) -> Iterator[tuple[str, dict[str, Any]]]:
        table = self.table(self.source)
        for record in split.records:
            yield record.id, example(record, table, split.labelled)
