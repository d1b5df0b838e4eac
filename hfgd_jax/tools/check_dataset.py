"""Checks a data set, raw or prepared, for faults that would spoil training.

python -m hfgd_jax.tools.check_dataset --dataset camvid --data_dir DATA     a prepared data set
python -m hfgd_jax.tools.check_dataset --dataset camvid --source RAW        its raw folder

Prints each split's label values and the share of each class, then every problem with the file's name:
unreadable files, images without label and labels without image, different sizes, values outside the
label table, labels that are ignored throughout, classes that are never seen, folders of images and labels
that look swapped; and what the values look like, where they do not look like ids. Exit code 1 where there
are problems, 2 for unusable arguments and folders of another layout.
"""

import dataclasses
import functools
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags
from jaxtyping import Integer

from hfgd_jax.data import builders, label_hints, prepared
from hfgd_jax.data.builders import base, files, parallel
from hfgd_jax.data.builders.folder import Folder
from hfgd_jax.data.labels import IGNORE, LabelTable
from hfgd_jax.errors import UserError, escaped
from hfgd_jax.runtime import shell
from hfgd_jax.runtime.progress import Progress
from hfgd_jax.tools.prepare import define_division_flags, division_options

MAX_LINES = 20  # of one kind of problem, and of notes, that are printed
FEW = 10  # images of an evaluation, fewer than which say little


@dataclasses.dataclass
class Finding:
    """What was found in one image and its label.

    Attributes:
        image: the image's name, where there is one.
        size: its height and width, where it can be read.
        values: label value -> pixels, where the label can be read.
        colours: the label holds colours instead of ids.
        swapped: the label is an image in colours, and the image looks like ids.
        problems: (kind, line) each.
    """

    image: str | None = None
    size: tuple[int, int] | None = None
    values: dict[int, int] = dataclasses.field(default_factory=dict)
    colours: bool = False
    swapped: bool = False
    problems: list[tuple[str, str]] = dataclasses.field(default_factory=list)


def examine_raw(record: base.Record, labelled: bool, table: LabelTable) -> Finding:
    """Reads a record of a raw data set."""
    found = Finding(record.image_name)
    if fault := base.unmatched(record, labelled):
        found.problems.append(("unpaired files", fault))
    data = None
    if record.image_name is not None:
        try:
            data = record.image_bytes()
            found.size = files.image_size(data, record.image_name)
        except UserError as error:
            found.problems.append(("unreadable images", str(error)))
    if not labelled or record.label_name is None:
        return found
    try:
        label = record.raw_label()
    except UserError as error:
        found.colours = isinstance(error, files.ColourLabelError)
        found.swapped = found.colours and found.size is not None and files.looks_like_ids(data)
        found.problems.append(("unusable labels", str(error)))
        return found
    _examine_label(label, record.label_name, table, found)
    return found


def examine_prepared(index: int, split: prepared.Split, table: LabelTable) -> Finding:
    """Reads a record of a prepared data set."""
    try:
        example = split.example(index)
    except prepared.CorruptRecordError as error:
        return Finding(problems=[("unreadable records", str(error))])
    name = f"{split.split} record {index} (id {example['id']!r})"
    found = Finding(name, example["image"].shape[:2])
    if split.labelled:
        _examine_label(example["label"], name, table, found)
    return found


def _examine_label(label: Integer[np.ndarray, "h w"], name: str, table: LabelTable, found: Finding) -> None:
    if found.size is not None and (fault := base.different_sizes(name, label.shape, found.size)):
        found.problems.append(("different sizes", fault))
    found.values = _histogram(label)
    unknown = [value for value in found.values if value not in table.raw_ids]
    if unknown:
        line = f"{name}: label value {files.listing(list(map(str, unknown)))} is not in the label table"
        found.problems.append(("values outside the table", line))
    elif all(table.raw_ids[value] == IGNORE for value in found.values):
        found.problems.append(("ignored throughout", f"{name}: every pixel is ignored"))


def _histogram(label: Integer[np.ndarray, "h w"]) -> dict[int, int]:
    """Value -> pixels."""
    if label.dtype == np.uint8:  # counted, which is far quicker than sorted
        counts = np.bincount(label.ravel(), minlength=256)
        values = np.flatnonzero(counts)
        counts = counts[values]
    else:
        values, counts = np.unique(label, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


@dataclasses.dataclass
class SplitReport:
    """What was found in one split."""

    name: str
    table: LabelTable
    images: int = 0
    labelled: bool = True
    ids: str = "raw id"  # what label values are
    values: Counter = dataclasses.field(default_factory=Counter)  # label value -> pixels
    images_with: Counter = dataclasses.field(default_factory=Counter)  # label value -> images
    sizes: Counter = dataclasses.field(default_factory=Counter)  # (height, width) -> images
    problems: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # (kind, line)
    notes: list[str] = dataclasses.field(default_factory=list)

    def add(self, kind: str, line: str) -> None:
        """Adds a problem."""
        self.problems.append((kind, line))

    def take(self, found: Finding) -> None:
        """Adds what was found in one image."""
        self.images += 1
        self.problems += found.problems
        if found.size is not None:
            self.sizes[found.size] += 1
        self.values.update(found.values)
        self.images_with.update(found.values.keys())

    def lines(self) -> Iterator[str]:
        """The report as text."""
        sizes = ", ".join(f"{w}x{h}" for (h, w), _ in self.sizes.most_common(3))
        more = f" and {len(self.sizes) - 3} more sizes" if len(self.sizes) > 3 else ""
        yield f"{self.table.name} {self.name}: {self.images} images, {sizes}{more}"
        if self.labelled:
            yield f"  {self.ids:>8}  {'class':<20} {'images':>7} {'pixels':>12} {'share':>7}"
        total = max(1, sum(self.values.values()))
        for value in sorted(self.values):
            train = self.table.raw_ids.get(value)
            name = "NOT IN THE TABLE" if train is None else "(ignored)"
            name = name if train in (None, IGNORE) else self.table.classes[train]
            pixels = self.values[value]
            yield (
                f"  {value:>8}  {name:<20} {self.images_with[value]:>7} {pixels:>12} {pixels / total:>7.2%}"
            )
        kinds = Counter()
        for kind, line in self.problems:
            kinds[kind] += 1
            if kinds[kind] <= MAX_LINES:
                yield f"  PROBLEM {line}"
        for kind, count in kinds.items():
            if count > MAX_LINES:
                yield f"  PROBLEM ... and {count - MAX_LINES} more: {kind}"
        yield from (f"  note: {note}" for note in self.notes[:MAX_LINES])
        if len(self.notes) > MAX_LINES:
            yield f"  note: ... and {len(self.notes) - MAX_LINES} more"


def check_split(
    name: str, findings: Iterable[Finding], table: LabelTable, labelled: bool = True, ids: str = "raw id"
) -> SplitReport:
    """The report of a split from the findings of its records; `ids` says what label values are."""
    report, colours, swapped = SplitReport(name, table, labelled=labelled, ids=ids), 0, []
    for found in findings:
        report.take(found)
        colours += found.colours
        swapped += [found.image] if found.swapped else []
    if report.images == 0:
        report.add("empty split", f"{name}: no images")
    elif 2 * len(swapped) > report.images:
        line = (
            f"{swapped[0]}: holds ids, and its label colours; are the folders of images and labels swapped?"
        )
        report.add("swapped folders", line)
    if labelled:
        report.notes += label_hints.hints(table, report.values, colours)
        if any(kind == "unusable labels" for kind, _ in report.problems):
            report.notes.append("classes that are never seen are not told: some labels could not be used")
        else:
            _check_classes(report)
        _check_size(report)
    return report


def _check_size(report: SplitReport) -> None:
    if report.table.num_classes == 1:
        report.notes.append(
            "there is one class: every pixel is right whatever a model says; list the rest, too"
        )
    if report.name != "train" and 0 < report.images < FEW:
        report.notes.append(f"{report.name} has {report.images} images: their mIoU says little")


def _check_classes(report: SplitReport) -> None:
    seen = {report.table.raw_ids.get(value) for value in report.values}
    for train, name in enumerate(report.table.classes):
        if train not in seen:
            ids = [raw for raw, value in report.table.raw_ids.items() if value == train]
            shown = files.listing(list(map(str, ids)))
            line = f"class {name!r} ({report.ids} {shown}) is never seen in {report.name}"
            if report.name == "train":
                report.add("classes never seen", line)
            else:
                report.notes.append(line)


def check(
    dataset: str,
    *,
    data_dir: str | Path | None = None,
    raw: str | Path | None = None,
    options: base.Options = base.DEFAULTS,
) -> list[SplitReport]:
    """Checks all splits of a prepared data set, or of a raw folder where `raw` is given.

    Args:
        dataset: which data set.
        data_dir: where prepared data sets live.
        raw: a raw folder to check instead.
        options: how to divide a raw folder that does not say so itself.

    Raises:
        UserError: an unknown data set, one that is not prepared, or a raw folder of another layout.
    """
    builder = builders.get(dataset)
    reports = []
    if raw is not None:
        folder = builders.source_folder(dataset, raw)
        table, splits = builder.table(folder), builders.raw_splits(dataset, folder, options)
        for name, split in splits.items():
            examine = functools.partial(examine_raw, labelled=split.labelled, table=table)
            findings = _watched(dataset, name, parallel.ordered_map(examine, split.records), split.records)
            reports.append(check_split(name, findings, table, split.labelled))
            reports[-1].notes += builders.wrong_counts(dataset, {name: split})
        return reports
    for name in prepared.split_names(data_dir, dataset):
        split = prepared.open_split(data_dir, dataset, name)
        ids = {i: i for i in range(split.table.num_classes)} | {IGNORE: IGNORE}
        table = LabelTable(dataset, split.table.classes, split.table.palette, ids)
        examine = functools.partial(examine_prepared, split=split, table=table)
        places = range(len(split))
        findings = _watched(dataset, name, parallel.ordered_map(examine, places), places)
        reports.append(check_split(name, findings, table, split.labelled, "train id"))
    return reports


def _watched(
    dataset: str, name: str, findings: Iterable[Finding], records: Sequence[object]
) -> Iterator[Finding]:
    """Passes the findings on; prints progress where stderr is a terminal."""
    progress = Progress() if sys.stderr.isatty() else None
    for done, found in enumerate(findings, start=1):
        if progress:
            progress(f"{dataset} {name}: {done}/{len(records)}")
        yield found


def folder_config(reports: Sequence[SplitReport]) -> str:
    """The `--config` for a folder: the number of its classes and the median size of its images."""
    sizes = [size for report in reports for size in report.sizes.elements()]
    height, width = np.median(sizes, axis=0).astype(int)
    return f"configs/folder.py:classes={reports[0].table.num_classes},images={width}x{height}"


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_enum("dataset", None, sorted(builders.BUILDERS), "Which data set.", required=True)
    flags.DEFINE_string("source", None, "A raw folder to check instead of the prepared data set.")
    flags.DEFINE_string("data_dir", "data", "Where prepared data sets live.")
    define_division_flags()


def main(argv: Sequence[str]) -> int:
    """Checks the data set of the flags; returns the exit code."""
    del argv
    values = flags.FLAGS
    options = division_options()
    reports = check(values.dataset, data_dir=values.data_dir, raw=values.source, options=options)
    for report in reports:
        print("\n".join(map(escaped, report.lines())))
    problems = sum(len(report.problems) for report in reports)
    print(f"{problems or 'no'} problem{'s' if problems != 1 else ''} found")
    if values.dataset == Folder.NAME and not problems:
        print(f"its config: {folder_config(reports)}")
    return 1 if problems else 0


if __name__ == "__main__":
    define_flags()
    shell.run(main)
