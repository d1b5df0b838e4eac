"""Prepared data sets on disk: a split's records by index, decoded with OpenCV (`open_split`, `Split`).

Not here: preparing them (`builders/`), batches of them (`pipeline.py`).
"""

import threading
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from hfgd_jax.data import builders, image_files
from hfgd_jax.data.labels import LabelTable
from hfgd_jax.errors import UserError
from hfgd_jax.runtime import storage


class CorruptRecordError(UserError):
    """A record that cannot be read or decoded; the message names data set, split, index and id."""


class Split:
    """One split of a prepared data set. It can be pickled; each process opens the files for itself.

    Attributes:
        dataset: the data set's name.
        split: the split's name.
        table: the data set's label table, as it was when the data set was prepared.
        labelled: whether the records have labels.
    """

    def __init__(self, folder: epath.Path, split: str, info: tfds.core.DatasetInfo) -> None:
        self.folder, self.dataset, self.split = folder, info.name, split
        self.table = LabelTable.from_json(info.metadata["table"])
        self.labelled = split not in info.metadata["unlabelled"]
        self._length = info.splits[split].num_examples
        self._reset()

    def _reset(self) -> None:
        self._lock, self._records, self._sizes = threading.Lock(), None, {}

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_records", "_sizes")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __len__(self) -> int:
        return self._length

    def record_id(self, index: int) -> str:
        """The record's name in its raw data set. Raises CorruptRecordError."""
        return _text(self._read(index)["id"])

    def example(self, index: int) -> dict[str, Any]:
        """The decoded record.

        Returns:
            `image`: uint8 `[h, w, 3]` RGB, as stored (an EXIF rotation is not applied: labels were drawn on
            the stored pixels); `label`: uint8 `[h, w]` train ids, 255 ignored (absent in splits without
            labels); `id`: str.

        Raises:
            CorruptRecordError: the record cannot be read or decoded.
        """
        record = self._read(index)
        image = self._decode(index, record, "image", cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        out = {"image": cv2.cvtColor(image, cv2.COLOR_BGR2RGB), "id": _text(record["id"])}
        if self.labelled:
            out["label"] = self._label(index, record)
            if out["label"].shape != image.shape[:2]:
                raise self._corrupt(index, record, "its label has another size than its image")
        return out

    def label(self, index: int) -> np.ndarray:
        """The record's label alone, as `example` has it; the split must be labelled.

        Raises CorruptRecordError.
        """
        return self._label(index, self._read(index))

    def _label(self, index: int, record: Mapping[str, bytes]) -> np.ndarray:
        label = self._decode(index, record, "label", cv2.IMREAD_UNCHANGED)
        if label.ndim != 2 or label.dtype != np.uint8:
            raise self._corrupt(index, record, "its label is no map of train ids")
        return label

    def _decode(self, index: int, record: Mapping[str, bytes], part: str, flags: int) -> np.ndarray:
        try:
            found = image_files.decode(record[part], flags)
        except image_files.TooLargeError as error:
            raise self._corrupt(index, record, f"its {part} has {error}") from None
        if found is None:
            raise self._corrupt(index, record, f"its {part} cannot be decoded")
        return found

    def size(self, index: int) -> tuple[int, int]:
        """Height and width from the image's header alone; remembered. Raises CorruptRecordError."""
        if index not in self._sizes:
            record = self._read(index)
            try:
                with image_files.opened(record["image"]) as image:
                    self._sizes[index] = (image.height, image.width)
            except image_files.TooLargeError as error:
                raise self._corrupt(index, record, f"its image has {error}") from None
            except Exception:  # Pillow's readers of headers raise many kinds on bad bytes
                raise self._corrupt(index, record, "its image has no readable header") from None
        return self._sizes[index]

    def _read(self, index: int) -> dict[str, bytes]:
        if not 0 <= index < self._length:
            raise IndexError(f"{self.dataset} {self.split}: no record {index}; there are {self._length}")
        try:
            if self._records is None:  # opened late: by each process, at its first record
                with self._lock:
                    if self._records is None:
                        skip = tfds.decode.SkipDecoding()
                        self._records = tfds.builder_from_directory(self.folder).as_data_source(
                            self.split, decoders={"image": skip, "label": skip}
                        )
            record = self._records[index]
        except Exception as error:  # array_record and protobuf raise their own kinds
            raise self._corrupt(index, None, f"it cannot be read ({error})") from None
        if record["id"] is None:  # a file that was truncated after it was opened
            raise self._corrupt(index, None, "it cannot be read (it is empty)")
        return record

    def _corrupt(self, index: int, record: Mapping[str, bytes] | None, what: str) -> CorruptRecordError:
        name = "unknown" if record is None else repr(_text(record["id"]))
        return CorruptRecordError(
            f"data set {self.dataset!r} in {self.folder}, split {self.split!r}, record {index} (id {name}): "
            f"{what}"
        )


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def open_split(data_dir: epath.PathLike, dataset: str, split: str) -> Split:
    """Opens a split of a prepared data set.

    Raises:
        UserError: an unknown data set or split, or one that is not prepared (with the command that does it).
    """
    folder, info = _open(data_dir, dataset)
    if split not in info.splits:
        raise UserError(f"data set {dataset!r} has no split {split!r}; one of {', '.join(info.splits)}")
    return Split(folder, split, info)


def split_names(data_dir: epath.PathLike, dataset: str) -> list[str]:
    """Names of a prepared data set's splits. Raises UserError as `open_split` does."""
    return list(_open(data_dir, dataset)[1].splits)


def _open(data_dir: epath.PathLike, dataset: str) -> tuple[epath.Path, tfds.core.DatasetInfo]:
    builder = builders.get(dataset)
    folder = storage.resolve(data_dir, "data_dir", arrays=True) / dataset / str(builder.VERSION)
    command = f"python -m hfgd_jax.tools.prepare --dataset {dataset} --data_dir {data_dir}"
    command += "" if builder.EMBEDDED else " --source RAW"
    if not builders.is_prepared(folder):
        if folder.parent.is_dir():
            raise UserError(
                f"data set {dataset!r} is not in version {builder.VERSION} in {data_dir}; "
                f"run: {command} --overwrite"
            )
        raise UserError(f"data set {dataset!r} is not prepared in {data_dir}; run: {command}")
    try:
        info = tfds.builder_from_directory(folder).info
        if {"table", "unlabelled"} <= set(info.metadata or ()):
            return folder, info
        why = "has no label table"
    except Exception as error:  # tfds and protobuf raise their own kinds
        why = f"cannot be read ({error})"
    raise UserError(f"{folder}: {why}; run: {command} --overwrite") from None
