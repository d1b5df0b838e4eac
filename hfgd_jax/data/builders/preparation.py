"""Prepares data sets: raw folders become ArrayRecord files in `DATA_DIR/NAME/VERSION`, whole or not at all.

Not here: what a raw folder holds (a builder's `splits`, one file a data set).
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
from etils import epath

from hfgd_jax.data.builders import base, files, parallel, registry
from hfgd_jax.data.builders.base import SegmentationBuilder
from hfgd_jax.data.labels import LabelTable
from hfgd_jax.errors import UserError
from hfgd_jax.runtime import storage
from hfgd_jax.runtime.progress import Progress

_SHARD_RECORDS = 1000
_CHUNK = 64  # records between two writes of the metadata
_MAX_FAULTS = 200  # bad records after which preparing stops
_LOCK = "lock"  # a file in the hidden folder; locked while its process works
_OLD = 24 * 3600  # seconds after which unfinished work is removed on file systems without locks
_INFO = "dataset_info.json"
_DESCRIPTIONS = (_INFO, "features.json", "metadata.json")


def prepare(
    dataset: str,
    source: str | Path | None,
    data_dir: epath.PathLike,
    *,
    overwrite: bool = False,
    allow_partial: bool = False,
    options: base.Options = base.DEFAULTS,
    report: Callable[[str], None] | None = None,
) -> epath.Path:
    """Writes a data set to `data_dir/dataset/VERSION`, whole or not at all.

    Every image is decoded and every label value checked on the way, on all cores. The work happens in a
    hidden folder that is moved into place at the end and removed when something fails. Where the process was
    killed, the next preparation of the data set removes it.

    Args:
        dataset: a key of `BUILDERS`.
        source: the raw folder; not needed for the data sets in `EMBEDDED`.
        data_dir: where prepared data sets live; made where missing. For one in a bucket the work happens in a
            temporary folder of this machine.
        overwrite: replace a prepared data set; a folder that holds anything else is left alone.
        allow_partial: take a copy with other numbers of records than the owners'.
        options: how to divide a folder that does not say so itself.
        report: called with lines of progress; None prints them to stderr (on a terminal, over each other).

    Returns:
        The folder that now holds the data set.

    Raises:
        UserError: unknown data set, missing folder, something there already, another number of records, files
            without a partner or bad records (the message names the first of them and says how many).
    """
    builder_class = registry.get(dataset)
    source = registry.source_folder(dataset, source)
    place = storage.resolve(data_dir, "data_dir", arrays=True)
    target = place / dataset
    if target.exists() and not overwrite:
        raise UserError(f"{target}: already there; --overwrite prepares it anew")
    _refuse_foreign(target)
    splits = registry.raw_splits(dataset, source, options)
    _check_before(dataset, splits, allow_partial)
    here = None if storage.is_remote(place) else Path(place)
    try:
        if here:
            here.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(here, dataset)
        staging = Path(tempfile.mkdtemp(prefix=f".{dataset}.incomplete-", dir=here))
        lock = (staging / _LOCK).open("w")
    except OSError as error:
        raise UserError(f"{data_dir}: cannot be written ({error.strerror})") from None
    try:
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until this process ends, however it does
            builder = builder_class(data_dir=str(staging), source=str(source), file_format="array_record")
            try:
                _write(builder, splits, report or Progress())
            except OSError as error:  # a full disk, say
                raise UserError(f"{data_dir}: preparing {dataset!r} failed ({error})") from None
            (_move_into_place if here else _upload)(staging, target, overwrite)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target / str(builder.version)


def _refuse_foreign(target: epath.Path) -> None:
    """Raises UserError where a folder to be replaced holds anything but prepared data sets."""
    found = [folder / name for folder, _, names in target.walk() for name in names] if target.is_dir() else []
    if target.exists() and not target.is_dir():
        found = [target]
    for path in found:
        if path.name not in _DESCRIPTIONS and ".array_record-" not in path.name:
            raise UserError(
                f"{path}: is no part of a prepared data set, and would be lost; move it away, or use another "
                "--data_dir"
            )


def _check_before(dataset: str, splits: Mapping[str, base.RawSplit], allow_partial: bool) -> None:
    """Raises UserError for what is wrong with the records before any file is read."""
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
            raise UserError(
                f"data set {dataset!r}: no images in split {name!r}; want {registry.get(dataset).LAYOUT}"
            )
    wrong = registry.wrong_counts(dataset, splits)
    if wrong and not allow_partial:
        raise UserError(
            f"data set {dataset!r}: {'; '.join(wrong)}; a miniature or partial copy needs --allow_partial"
        )


def _upload(staging: Path, target: epath.Path, overwrite: bool) -> None:
    """Copies a data set into a bucket; `dataset_info.json`, what `is_prepared` looks for, comes last."""
    folders = sorted((staging / target.name).iterdir())
    if target.exists() and not overwrite:
        raise UserError(f"{target}: another process has prepared it meanwhile")
    try:
        for folder in target.iterdir() if target.is_dir() else ():
            (folder / _INFO).unlink(missing_ok=True)
        if target.is_dir():
            target.rmtree()
        for folder in folders:
            for file in sorted(folder.iterdir(), key=lambda file: file.name == _INFO):
                with file.open("rb") as source, (target / folder.name / file.name).open("wb") as copy:
                    shutil.copyfileobj(source, copy, 2**20)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error}); prepare it again with --overwrite") from None


def _move_into_place(staging: Path, place: epath.Path, overwrite: bool) -> None:
    target, replaced = Path(place), staging / "replaced"
    try:
        if overwrite and target.exists():
            target.rename(replaced)
        (staging / target.name).rename(target)
    except OSError as error:
        if replaced.exists() and not target.exists():
            replaced.rename(target)
        raise UserError(f"{target}: cannot be put there; another process may have ({error})") from None


def prepare_if_missing(
    dataset: str, data_dir: epath.PathLike, report: Callable[[str], None] | None = None
) -> epath.Path:
    """Prepares an embedded data set where `data_dir` does not hold it in this version; returns its folder.

    Raises:
        UserError: a data set that is not embedded, a folder that holds other things, or as `prepare`.
    """
    if dataset not in registry.EMBEDDED:
        raise UserError(
            f"data set {dataset!r}: needs a source; embedded are {', '.join(sorted(registry.EMBEDDED))}"
        )
    place = storage.resolve(data_dir, "data_dir", arrays=True)
    folder = place / dataset / str(registry.get(dataset).VERSION)
    if not folder.parent.exists() and place.is_dir() and (there := _visible(place)):
        raise UserError(
            f"data set {dataset!r} is not in {data_dir}, which holds {there[0]!r} and is not written to "
            "unasked: name another data_dir, or run: python -m hfgd_jax.tools.prepare "
            f"--dataset {dataset} --data_dir {data_dir}"
        )
    try:
        if not is_prepared(folder):
            prepare(dataset, None, data_dir, overwrite=folder.parent.exists(), report=report)
    except UserError:
        if not is_prepared(folder):  # else another process was faster
            raise
    return folder


def _visible(folder: epath.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def is_prepared(folder: epath.Path) -> bool:
    """Whether the folder holds a prepared data set (data sets appear whole)."""
    return (folder / _INFO).is_file()


def _remove_leftovers(data_dir: Path, dataset: str) -> None:
    """Removes folders that killed preparations left; a running one holds its lock and stays."""
    for folder in data_dir.glob(f".{dataset}.incomplete-*"):
        try:
            with (folder / _LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        except FileNotFoundError:  # killed before it had a lock, or not ours
            empty = all(path.is_dir() and not path.is_symlink() for path in folder.rglob("*"))
            if not empty or time.time() - folder.stat().st_mtime < _OLD:
                continue
        except OSError:  # a file system without locks
            if time.time() - folder.stat().st_mtime < _OLD:
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
    builder: SegmentationBuilder, splits: Mapping[str, base.RawSplit], report: Callable[[str], None]
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
            elif not faults:  # after the first fault nothing more is written
                chunk.append(example)
            if len(chunk) == _CHUNK or (chunk and done == total):
                writer.add_examples({name: chunk})
                chunk = []
            report(f"{builder.name} {name}: {done}/{total}")
    if faults:
        raise UserError(files.listing(faults, "; "))
    writer.close_all()
