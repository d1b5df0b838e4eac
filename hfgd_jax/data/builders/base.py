"""What the builders share: records of a raw data set, their checks, and the TFDS features."""

import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import cv2
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Integer, UInt8
from PIL import Image

from hfgd_jax.data.labels import TABLES, LabelTable
from hfgd_jax.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


class Record(Protocol):
    """One picture of a raw data set and its label, either of which may be missing."""

    id: str

    @property
    def image_name(self) -> str | None:
        """Where the picture is, for messages; None where there is none."""

    @property
    def label_name(self) -> str | None:
        """Where the label is, for messages; None where there is none."""

    def image_bytes(self) -> bytes:
        """The encoded picture. Raises UserError where it cannot be read."""

    def raw_label(self) -> Integer[np.ndarray, "h w"]:
        """The label map in raw ids. Raises UserError where it cannot be read."""


@dataclasses.dataclass(frozen=True)
class FileRecord:
    """A record whose picture and label are files."""

    id: str
    image: Path | None
    label: Path | None

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
        return read_label(self.label)


@dataclasses.dataclass(frozen=True)
class Split:
    """The records of one split in raw form; an unlabelled split has no labels at all."""

    records: Sequence[Record]
    labelled: bool = True


def read_label(path: Path) -> Integer[np.ndarray, "h w"]:
    """Ids of a one-channel label file; of a palette file the indices, not the colours.

    Raises:
        UserError: the file cannot be read, or has several channels.
    """
    try:
        with Image.open(path) as image:
            ids = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: label cannot be read ({error})") from None
    if ids.ndim != 2 or ids.dtype == bool:
        raise UserError(f"{path}: label has mode {image.mode}; want one channel of ids (8 or 16 bits)")
    return ids


def image_size(data: bytes, name: str) -> tuple[int, int]:
    """Height and width of an encoded picture, after decoding all of it.

    Raises:
        UserError: it cannot be decoded.
    """
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    if image is None:
        raise UserError(f"{name}: image cannot be decoded ({len(data)} bytes; truncated or not an image)")
    return image.shape[:2]


def checked(record: Record, table: LabelTable, labelled: bool) -> tuple[bytes, UInt8[np.ndarray, "h w"]]:
    """The encoded picture and the label in train ids (1x1 where the split has no labels).

    Raises:
        UserError: a missing or unreadable file, different sizes, or a value outside the table.
    """
    if record.image_name is None:
        raise UserError(f"{record.label_name}: label without an image")
    data = record.image_bytes()
    size = image_size(data, record.image_name)
    if not labelled:
        return data, np.full((1, 1), 255, np.uint8)
    if record.label_name is None:
        raise UserError(f"{record.image_name}: image without a label")
    raw = record.raw_label()
    if raw.shape != size:
        raise UserError(
            f"{record.label_name}: label is {raw.shape[1]}x{raw.shape[0]}, "
            f"but its image is {size[1]}x{size[0]}"
        )
    try:
        return data, table.to_train_ids(raw)
    except UserError as error:
        raise UserError(f"{record.label_name}: {error}") from None


def pairs(images: Path, labels: Path) -> list[Record]:
    """Files of two folders paired by stem, sorted; a file without a partner is a record with one side."""
    found, masks = _by_stem(images, IMAGE_SUFFIXES), _by_stem(labels, (".png",))
    return [FileRecord(stem, found.get(stem), masks.get(stem)) for stem in sorted(found | masks)]


def _by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    out: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(".") or path.suffix.lower() not in suffixes:
            continue
        if path.stem in out:
            raise UserError(f"{path}: {out[path.stem].name} has the same name; which of them is meant?")
        out[path.stem] = path
    return out


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS builder over pictures and label maps.

    A data set is a subclass with `NAME` and `VERSION` (and a table in `labels.TABLES`, or its own `table`)
    that says in `splits` which records the raw folder holds.

    Records on disk: `id`; `image`, encoded as its owner distributes it; `label`, PNG of train ids (255
    ignored; 1x1 in splits without labels). The label table travels in the data set's metadata.
    """

    NAME: ClassVar[str]
    EMBEDDED: ClassVar[bool] = False  # needs no source
    LAYOUT: ClassVar[str] = ""  # one line for messages and help

    def __init__(self, *, source: str = "", **kwargs: Any) -> None:
        self.source = Path(source)
        super().__init__(**kwargs)

    @classmethod
    def table(cls, source: Path) -> LabelTable:
        """The data set's label table."""
        del source
        return TABLES[cls.NAME]

    @classmethod
    def splits(cls, source: Path) -> Mapping[str, Split]:
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

    def _generate_examples(self, split: Split) -> Iterator[tuple[str, dict[str, Any]]]:
        table = self.table(self.source)
        for record in split.records:
            data, label = checked(record, table, split.labelled)
            # bytes and a PIL picture, since TFDS encodes arrays with TensorFlow
            yield record.id, {"id": record.id, "image": io.BytesIO(data), "label": Image.fromarray(label)}
