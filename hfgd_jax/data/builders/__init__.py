"""The data sets that can be prepared, and the preparation: raw folders -> ArrayRecord files on disk.

A new data set is one file in this folder, one line in `BUILDERS`, and its table in `labels.TABLES`.
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import tensorflow_datasets as tfds

from hfgd_jax.data.builders.base import SegmentationBuilder
from hfgd_jax.data.builders.camvid import Camvid
from hfgd_jax.data.builders.shapes import Shapes
from hfgd_jax.errors import UserError

BUILDERS: dict[str, type[SegmentationBuilder]] = {
    builder.NAME: builder
    for builder in (
        Camvid,
        Shapes,
    )
}
EMBEDDED = frozenset(name for name, builder in BUILDERS.items() if builder.EMBEDDED)

_SHARD_RECORDS = 1000
_CHUNK = 64  # records between two writes of the metadata


def get(dataset: str) -> type[SegmentationBuilder]:
    """The builder of a data set. Raises UserError for an unknown name."""
    if dataset not in BUILDERS:
        raise UserError(f"data set {dataset!r}: unknown; one of {', '.join(sorted(BUILDERS))}")
    return BUILDERS[dataset]


def source_folder(dataset: str, source: str | Path | None) -> Path:
    """The raw folder of a data set as a path, checked to be there where the data set needs one.

    Raises:
        UserError: no source given, or no such folder; says which layout is wanted.
    """
    builder = get(dataset)
    if builder.EMBEDDED:
        return Path()
    if not source:
        raise UserError(f"data set {dataset!r} needs its raw folder: --source SOURCE, with {builder.LAYOUT}")
    if not Path(source).is_dir():
        raise UserError(f"{source}: no such folder; data set {dataset!r} wants {builder.LAYOUT}")
    return Path(source)


def prepare(
    dataset: str,
    source: str | Path | None,
    data_dir: str | Path,
    *,
    overwrite: bool = False,
    report: Callable[[str], None] | None = None,
) -> Path:
    """Writes a data set to `data_dir/dataset/VERSION`, whole or not at all.

    Every picture is decoded and every label value checked on the way. The work happens in a hidden folder
    that is moved into place at the end and removed when something fails.

    Args:
        dataset: a key of `BUILDERS`.
        source: the raw folder; not needed for the data sets in `EMBEDDED`.
        data_dir: where prepared data sets live; made where missing.
        overwrite: replace a prepared data set.
        report: called with lines of progress; None prints them to stderr (on a terminal, over each other).

    Returns:
        The folder that now holds the data set.

    Raises:
        UserError: unknown data set, missing folder, something there already, or a bad record (with its file).
    """
    builder_class = get(dataset)
    source = source_folder(dataset, source)
    target = Path(data_dir) / dataset
    if target.exists() and not overwrite:
        raise UserError(f"{target}: already there; --overwrite prepares it anew")
    try:
        Path(data_dir).mkdir(parents=True, exist_ok=True)
        _remove_leftovers(Path(data_dir), dataset)
        staging = Path(tempfile.mkdtemp(prefix=f".{dataset}.incomplete-", dir=data_dir))
    except OSError as error:
        raise UserError(f"{data_dir}: cannot be written ({error.strerror})") from None
    try:
        builder = builder_class(data_dir=str(staging), source=str(source), file_format="array_record")
        try:
            _write(builder, report or _Progress(sys.stderr))
        except OSError as error:  # a full disk, say
            raise UserError(f"{data_dir}: preparing {dataset!r} failed ({error})") from None
        _move_into_place(staging, target, overwrite)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target / str(builder.version)


def _move_into_place(staging: Path, target: Path, overwrite: bool) -> None:
    replaced = staging / "replaced"
    try:
        if overwrite and target.exists():
            target.rename(replaced)
        (staging / target.name).rename(target)
    except OSError as error:
        if replaced.exists() and not target.exists():
            replaced.rename(target)
        raise UserError(f"{target}: cannot be put there; another process may have ({error})") from None


def prepare_if_missing(
    dataset: str, data_dir: str | Path, report: Callable[[str], None] | None = None
) -> Path:
    """Prepares an embedded data set where `data_dir` does not hold it in this version; returns its folder.

    Raises:
        UserError: a data set that is not embedded, or as `prepare`.
    """
    if dataset not in EMBEDDED:
        raise UserError(f"data set {dataset!r}: needs a source; embedded are {', '.join(sorted(EMBEDDED))}")
    folder = Path(data_dir) / dataset / str(get(dataset).VERSION)
    try:
        if not is_prepared(folder):
            prepare(dataset, None, data_dir, overwrite=folder.parent.exists(), report=report)
    except UserError:
        if not is_prepared(folder):  # else another process was faster
            raise
    return folder


def is_prepared(folder: Path) -> bool:
    """Whether the folder holds a prepared data set (data sets appear whole)."""
    return (folder / "dataset_info.json").is_file()


def _remove_leftovers(data_dir: Path, dataset: str) -> None:
    """Removes what a killed preparation left, once it is surely not one at work: after a day."""
    for folder in data_dir.glob(f".{dataset}.incomplete-*"):
        if time.time() - folder.stat().st_mtime > 24 * 3600:
            shutil.rmtree(folder, ignore_errors=True)


def _write(builder: SegmentationBuilder, report: Callable[[str], None]) -> None:
    splits = builder.splits(builder.source)
    builder.info.metadata["unlabelled"] = [name for name, split in splits.items() if not split.labelled]
    Path(builder.data_dir).mkdir(parents=True)
    # In the order of the source and in little memory, however large a split is (TFDS's own writer shuffles
    # large splits on disk, with TensorFlow).
    writer = tfds.core.SequentialWriter(builder.info, _SHARD_RECORDS, file_format="array_record")
    writer.initialize_splits(list(splits))
    for name, split in splits.items():
        total, chunk = len(split.records), []
        for done, (_, example) in enumerate(builder._generate_examples(split), start=1):
            chunk.append(example)
            if len(chunk) == _CHUNK or done == total:
                writer.add_examples({name: chunk})
                chunk = []
            report(f"{builder.name} {name}: {done}/{total}")
    writer.close_all()


class _Progress:
    """Lines over each other on a terminal; elsewhere one every few seconds, and the last of each split."""

    def __init__(self, stream, seconds: float = 5.0) -> None:
        self.stream, self.last = stream, time.monotonic()
        self.terminal = stream.isatty()
        self.seconds = 0.1 if self.terminal else seconds

    def __call__(self, line: str) -> None:
        done, _, total = line.rpartition(" ")[2].partition("/")
        end = done == total
        if end or time.monotonic() - self.last >= self.seconds:
            self.last = time.monotonic()
            start = "\r" if self.terminal else ""
            self.stream.write(start + line + ("" if self.terminal and not end else "\n"))
            self.stream.flush()
