"""Pascal Context in its 59 classes: VOC2010's images with 59-class PNGs or the full 459-class LabelMaps."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import tensorflow_datasets as tfds

from hfgd_jax.data.builders import base, files
from hfgd_jax.data.label_tables import pascal_context as names
from hfgd_jax.data.labels import IGNORE, TABLES, LabelTable
from hfgd_jax.errors import UserError

_OWNERS, _SORTED, _FULL = "59_context_labels", "SegmentationClassContext", "trainval"
_LISTS = (".", "ImageSets/SegmentationContext", "ImageSets/Main")


class PascalContext(base.SegmentationBuilder):
    """VOC2010's images, every pixel labelled: 59 classes, the background is ignored.

    Three kinds of labels are read, the first that is there: PNGs of the owners' 59-class list, in
    `59_context_labels`; PNGs of the 59 names in alphabetical order, in `SegmentationClassContext`, as other
    projects write them; MATLAB LabelMaps of the full list, in `trainval`. A `59_labels.txt` (for the PNGs) or
    `labels.txt` (for the LabelMaps) in the source says which id has which name and overrides that order. The
    train ids are the same whichever it was.
    """

    NAME = "pascal_context"
    VERSION = tfds.core.Version("1.0.0")
    LAYOUT = (
        f"SOURCE/JPEGImages/NAME.jpg, train.txt and val.txt (in SOURCE, {_LISTS[1]} or {_LISTS[2]}), and "
        f"{_OWNERS}/NAME.png, {_SORTED}/NAME.png or {_FULL}/NAME.mat"
    )
    COUNTS = {"train": 4998, "val": 5105}

    @classmethod
    def table(cls, source: Path) -> LabelTable:
        kind = _labels(source).name
        table = TABLES[cls.NAME]
        if kind == _FULL:
            ids = dict(names.CLASSES)
            ids |= _read_names(source / "labels.txt", {})
            ignored = set(range(names.FULL + 1))
        else:
            in_order = sorted(table.classes) if kind == _SORTED else table.classes
            ids = {name: i for i, name in enumerate(in_order, start=1)}
            ids |= _read_names(source / "59_labels.txt", names.ALIASES)
            ignored = {0}
        raw_ids = dict.fromkeys(sorted(ignored), IGNORE)
        raw_ids |= {ids[name]: train for train, name in enumerate(table.classes)}
        return dataclasses.replace(table, raw_ids=raw_ids)

    @classmethod
    def splits(cls, source: Path, options: base.Options = base.DEFAULTS) -> Mapping[str, base.RawSplit]:
        del options
        images = files.first_folder(source, "JPEGImages", layout=cls.LAYOUT)
        labels = _labels(source)
        lists = next((source / at for at in _LISTS if (source / at / "train.txt").is_file()), source)
        suffix = ".mat" if labels.name == _FULL else ".png"
        return {
            name: base.RawSplit(base.listed(lists / f"{name}.txt", images, labels, suffix, "LabelMap"))
            for name in ("train", "val")
        }


def _labels(source: Path) -> Path:
    return files.first_folder(source, _OWNERS, _SORTED, _FULL, layout=PascalContext.LAYOUT)


def _read_names(path: Path, aliases: Mapping[str, str]) -> dict[str, int]:
    """Name -> id of the 59 classes from an owners' list (`id: name` a line); {} where there is no list."""
    if not path.is_file():
        return {}
    known, out = {name for name, _ in names.CLASSES}, {}
    for line in files.read_list(path):
        number, colon, name = line.partition(":")
        if not colon or not number.strip().isdigit():
            raise UserError(f"{path}: {line!r}: want lines such as '2: aeroplane'")
        name = name.replace(" ", "").lower()
        out[aliases.get(name, name)] = int(number)
    missing = sorted(known - set(out))
    if missing:
        raise UserError(f"{path}: no line for {files.listing(missing)}")
    return {name: i for name, i in out.items() if name in known}
