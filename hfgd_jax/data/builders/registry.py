"""The table of data sets (`BUILDERS`), and what a data set's raw folder is asked before it is prepared."""

from collections.abc import Mapping
from pathlib import Path

from hfgd_jax.data.builders import base
from hfgd_jax.data.builders.ade20k import Ade20k
from hfgd_jax.data.builders.base import SegmentationBuilder
from hfgd_jax.data.builders.camvid import Camvid
from hfgd_jax.data.builders.cityscapes import Cityscapes
from hfgd_jax.data.builders.coco_stuff import CocoStuff10k, CocoStuff164k
from hfgd_jax.data.builders.folder import Folder
from hfgd_jax.data.builders.pascal_context import PascalContext
from hfgd_jax.data.builders.shapes import Shapes
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


def raw_splits(
    dataset: str, source: Path, options: base.Options = base.DEFAULTS
) -> Mapping[str, base.RawSplit]:
    """Records of a raw folder by split.

    Raises:
        UserError: as the builder's `splits`, and for options that it does not use.
    """
    builder = get(dataset)
    if options != base.DEFAULTS and not builder.DIVIDES:
        divides = ", ".join(name for name, each in sorted(BUILDERS.items()) if each.DIVIDES)
        raise UserError(
            f"data set {dataset!r} has splits of its own; --val_ratio and --split_seed: {divides}"
        )
    return builder.splits(source, options)


def wrong_counts(dataset: str, splits: Mapping[str, base.RawSplit]) -> list[str]:
    """A line for each split that has another number of records than its owners say."""
    counts = get(dataset).COUNTS
    return [
        f"{name} has {len(split.records)} records, its owners count {counts[name]}"
        for name, split in splits.items()
        if len(split.records) != counts.get(name, len(split.records))
    ]
