"""The data sets that can be prepared, and the preparation: raw folders -> ArrayRecord files on disk.

A new data set is one file in this folder, one line in `BUILDERS`, and its table in `labels.TABLES`.
"""

import dataclasses
import fcntl
import functools
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from hfgd_jax.data.builders import base, files, parallel
from hfgd_jax.data.builders.ade20k import Ade20k
from hfgd_jax.data.builders.base import SegmentationBuilder
from hfgd_jax.data.builders.camvid import Camvid
from hfgd_jax.data.builders.cityscapes import Cityscapes
from hfgd_jax.data.builders.coco_stuff import CocoStuff10k, CocoStuff164k
from hfgd_jax.data.builders.folder import Folder
from hfgd_jax.data.builders.pascal_context import PascalContext
from hfgd_jax.data.builders.shapes import Shapes
from hfgd_jax.data.labels import LabelTable
from hfgd_jax.errors import UserError

BUILDERS: dict[str, type[SegmentationBuilder]] = {
    builder.NAME: builder
    for builder in (
        Ade20k,
        Camvid,
        Cityscapes,
        CocoStuff10k,
        CocoStuff164k,
        Folder,
        PascalContext,
        Shapes,
    )
}
EMBEDDED = frozenset(name for name, builder in BUILDERS.items() if builder.EMBEDDED)

_SHARD_RECORDS = 1000
_CHUNK = 64  # records between two writes of the metadata
_MAX_FAULTS = 200  # bad records after which a preparation looks no further
_LOCK = "lock"  # in a folder of work under way


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


def raw_splits(dataset: str, source: Path, options: base.Options = base.DEFAULTS) -> Mapping[str, base.Split]:
    """Records of a raw folder by split.

    Raises:
        UserError: as the builder's `splits`, and for options that it does not heed.
    """
    builder = get(dataset)
    if options != base.DEFAULTS and not builder.DIVIDES:
        divides = ", ".join(name for name, each in sorted(BUILDERS.items()) if each.DIVIDES)
        raise UserError(
            f"data set {dataset!r} has splits of its own; --val_ratio and --split_seed: {divides}"
        )
    return builder.splits(source, options)


def wrong_counts(dataset: str, splits: Mapping[str, base.Split]) -> list[str]:
    """A line for each split that has another number of records than its owners say."""
    counts = get(dataset).COUNTS
    return [
        f"{name} has {len(split.records)} records, its owners count {counts[name]}"
        for name, split in splits.items()
        if len(split.records) != counts.get(name, len(split.records))
    ]


def prepare(
    dataset: str,
    source: str | Path | None,
    data_dir: str | Path,
    *,
    overwrite: bool = False,
    allow_partial: bool = False,
    options: base.Options = base.DEFAULTS,
    report: Callable[[str], None] | None = None,
) -> Path:
    """Writes a data set to `data_dir/dataset/VERSION`, whole or not at all.

    Every picture is decoded and every label value checked on the way, on all cores. The work happens in a
    hidden folder that is moved into place at the end and removed when something fails; what a killed
    preparation left there goes with the next one.

    Args:
        dataset: a key of `BUILDERS`.
        source: the raw folder; not needed for the data sets in `EMBEDDED`.
        data_dir: where prepared data sets live; made where missing.
        overwrite: replace a prepared data set.
        allow_partial: take a copy with other numbers of records than the owners'.
        options: how to divide a folder that does not say so itself.
        report: called with lines of progress; None prints them to stderr (on a terminal, over each other).

    Returns:
        The folder that now holds the data set.

    Raises:
        UserError: unknown data set, missing folder, something there already, another number of records, files
            without a partner or bad records (the message names the first of them and says how many).
    """
    builder_class = get(dataset)
    source = source_folder(dataset, source)
    target = Path(data_dir) / dataset
    if target.exists() and not overwrite:
        raise UserError(f"{target}: already there; --overwrite prepares it anew")
    splits = raw_splits(dataset, source, options)
    _check_before(dataset, splits, allow_partial)
    try:
        Path(data_dir).mkdir(parents=True, exist_ok=True)
        _remove_leftovers(Path(data_dir), dataset)
        staging = Path(tempfile.mkdtemp(prefix=f".{dataset}.incomplete-", dir=data_dir))
        lock = (staging / _LOCK).open("w")
    except OSError as error:
        raise UserError(f"{data_dir}: cannot be written ({error.strerror})") from None
    try:
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until this process ends, however it does
            builder = builder_class(data_dir=str(staging), source=str(source), file_format="array_record")
            try:
                _write(builder, splits, report or parallel.Progress())
            except OSError as error:  # a full disk, say
                raise UserError(f"{data_dir}: preparing {dataset!r} failed ({error})") from None
            _move_into_place(staging, target, overwrite)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target / str(builder.version)


def _check_before(dataset: str, splits: Mapping[str, base.Split], allow_partial: bool) -> None:
    """What can be found out without reading the files."""
    unmatched = [
        line
        for split in splits.values()
        for record in split.records
        if (line := base.unmatched(record, split.labelled))
    ]
    if unmatched:
        raise UserError(files.listing(unmatched, "; "))
    for name, split in splits.items():
        if not split.records:
            raise UserError(f"data set {dataset!r}: no images in split {name!r}; want {get(dataset).LAYOUT}")
    wrong = wrong_counts(dataset, splits)
    if wrong and not allow_partial:
        raise UserError(
            f"data set {dataset!r}: {'; '.join(wrong)}; a miniature or partial copy needs --allow_partial"
        )


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
    """Removes what a killed preparation left, never one at work: that holds its lock."""
    for folder in data_dir.glob(f".{dataset}.incomplete-*"):
        try:
            with (folder / _LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        except OSError:  # no lock in it yet, or no locks here at all
            if time.time() - folder.stat().st_mtime < 24 * 3600:
                continue
        shutil.rmtree(folder, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class _Fault:
    """A record that cannot be prepared."""

    line: str


def _example(record: base.Record, table: LabelTable, labelled: bool) -> dict[str, Any] | _Fault:
    try:
        return base.example(record, table, labelled)
    except UserError as error:
        return _Fault(str(error))


def _write(
    builder: SegmentationBuilder, splits: Mapping[str, base.Split], report: Callable[[str], None]
) -> None:
    builder.info.metadata["unlabelled"] = [name for name, split in splits.items() if not split.labelled]
    Path(builder.data_dir).mkdir(parents=True)
    table, faults = builder.table(builder.source), []
    # In the order of the source and in little memory, however large a split is (TFDS's own writer shuffles
    # large splits on disk, with TensorFlow).
    writer = tfds.core.SequentialWriter(builder.info, _SHARD_RECORDS, file_format="array_record")
    writer.initialize_splits(list(splits))
    for name, split in splits.items():
        total, chunk = len(split.records), []
        make = functools.partial(_example, table=table, labelled=split.labelled)
        for done, example in enumerate(parallel.ordered_map(make, split.records), start=1):
            if isinstance(example, _Fault):
                faults.append(example.line)
                if len(faults) == _MAX_FAULTS:
                    raise UserError(f"{files.listing(faults, '; ')}, and no more were looked for")
            elif not faults:  # once there is a fault, the rest is only looked at
                chunk.append(example)
            if len(chunk) == _CHUNK or (chunk and done == total):
                writer.add_examples({name: chunk})
                chunk = []
            report(f"{builder.name} {name}: {done}/{total}")
    if faults:
        raise UserError(files.listing(faults, "; "))
    writer.close_all()
