"""Looks for what spoils a training run in a data set, before the run.

python -m hfgd_jax.tools.check_dataset --dataset camvid --data_dir DATA     a prepared data set
python -m hfgd_jax.tools.check_dataset --dataset camvid --source RAW        its raw folder

Prints each split's label values and the share of each class, then every problem with the file's name:
unreadable files, pictures without label and labels without picture, different sizes, values outside the
label table, labels that are ignored throughout, classes that are never seen. Exit code 1 where there are
problems, 2 for unusable arguments.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from hfgd_jax import cli
from hfgd_jax.data import builders, source
from hfgd_jax.data.builders import base
from hfgd_jax.data.labels import IGNORE, LabelTable
from hfgd_jax.errors import UserError

MAX_LINES = 20  # of one kind of problem that are printed


@dataclasses.dataclass(frozen=True)
class Item:
    """A picture and its label to check.

    Attributes:
        size: reads the picture; None where there is none. Raises UserError.
        label: reads the ids; None where there are none. Raises UserError.
        label_name: where the ids are, for messages.
        missing: what to say of a picture without label, or a label without picture.
    """

    size: Callable[[], tuple[int, int]] | None
    label: Callable[[], np.ndarray] | None
    label_name: str
    missing: str = ""


@dataclasses.dataclass
class SplitReport:
    """What was found in one split."""

    name: str
    table: LabelTable
    images: int = 0
    labelled: bool = True
    values: Counter = dataclasses.field(default_factory=Counter)  # label value -> pixels
    images_with: Counter = dataclasses.field(default_factory=Counter)  # label value -> images
    sizes: Counter = dataclasses.field(default_factory=Counter)  # (height, width) -> images
    problems: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # (kind, line)
    notes: list[str] = dataclasses.field(default_factory=list)

    def add(self, kind: str, line: str) -> None:
        self.problems.append((kind, line))

    def lines(self) -> Iterator[str]:
        """The report as text."""
        sizes = ", ".join(f"{w}x{h}" for (h, w), _ in self.sizes.most_common(3))
        more = f" and {len(self.sizes) - 3} more sizes" if len(self.sizes) > 3 else ""
        yield f"{self.table.name} {self.name}: {self.images} images, {sizes}{more}"
        if self.labelled:
            yield f"  {'value':>5}  {'class':<20} {'images':>7} {'pixels':>12} {'share':>7}"
        total = max(1, sum(self.values.values()))
        for value in sorted(self.values):
            train = self.table.raw_ids.get(value)
            name = "NOT IN THE TABLE" if train is None else "(ignored)"
            name = name if train in (None, IGNORE) else self.table.classes[train]
            pixels = self.values[value]
            yield (
                f"  {value:>5}  {name:<20} {self.images_with[value]:>7} {pixels:>12} {pixels / total:>7.2%}"
            )
        kinds = Counter()
        for kind, line in self.problems:
            kinds[kind] += 1
            if kinds[kind] <= MAX_LINES:
                yield f"  PROBLEM {line}"
        for kind, count in kinds.items():
            if count > MAX_LINES:
                yield f"  PROBLEM ... and {count - MAX_LINES} more: {kind}"
        yield from (f"  note: {note}" for note in self.notes)


def check_split(name: str, items: Iterable[Item], table: LabelTable, labelled: bool = True) -> SplitReport:
    """Reads every item once and reports."""
    report = SplitReport(name, table, labelled=labelled)
    for item in items:
        report.images += 1
        if item.missing:
            report.add("unpaired files", item.missing)
        _check_item(item, report)
    if report.images == 0:
        report.add("empty split", f"{name}: no images")
    if labelled:
        _check_classes(report)
    return report


def _check_item(item: Item, report: SplitReport) -> None:
    size = None
    if item.size is not None:
        try:
            size = item.size()
            report.sizes[size] += 1
        except UserError as error:
            report.add("unreadable images", str(error))
    if item.label is None:
        return
    try:
        label = item.label()
    except UserError as error:
        report.add("unreadable labels", str(error))
        return
    if size is not None and label.shape != size:
        report.add(
            "different sizes",
            f"{item.label_name}: label is {label.shape[1]}x{label.shape[0]}, "
            f"but its image is {size[1]}x{size[0]}",
        )
    values, counts = np.unique(label, return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        report.values[value] += count
        report.images_with[value] += 1
    unknown = [v for v in values.tolist() if v not in report.table.raw_ids]
    if unknown:
        report.add(
            "values outside the table",
            f"{item.label_name}: label value {', '.join(map(str, unknown))} is not in the label table",
        )
    elif all(report.table.raw_ids[v] == IGNORE for v in values.tolist()):
        report.add("ignored throughout", f"{item.label_name}: every pixel is ignored")


def _check_classes(report: SplitReport) -> None:
    seen = {report.table.raw_ids.get(value) for value in report.values}
    for train, name in enumerate(report.table.classes):
        if train not in seen:
            line = f"class {train} {name!r} is never seen in {report.name}"
            if report.name == "train":
                report.add("classes never seen", line)
            else:
                report.notes.append(line)


def raw_items(split: base.Split) -> Iterator[Item]:
    """The records of a raw split."""
    for record in split.records:
        image, label = record.image_name, record.label_name
        missing = ""
        if image is None:
            missing = f"{label}: label without an image"
        elif label is None and split.labelled:
            missing = f"{image}: image without a label"
        yield Item(
            size=None if image is None else lambda r=record: base.image_size(r.image_bytes(), r.image_name),
            label=record.raw_label if label is not None and split.labelled else None,
            label_name=label or "",
            missing=missing,
        )


def prepared_items(split: source.Split) -> Iterator[Item]:
    """The records of a prepared split."""
    for index in range(len(split)):

        def read(key: str, index: int = index) -> np.ndarray:
            return split.example(index)[key]

        try:
            example = split.example(index)
        except source.CorruptRecordError:
            yield Item(lambda read=read: read("image").shape[:2], None, "")
            continue
        yield Item(
            size=lambda image=example["image"]: image.shape[:2],
            label=(lambda label=example["label"]: label) if split.labelled else None,
            label_name=f"{split.split} record {index} (id {example['id']!r})",
        )


def check(
    dataset: str, *, data_dir: str | Path | None = None, raw: str | Path | None = None
) -> list[SplitReport]:
    """Checks all splits of a prepared data set, or of a raw folder where `raw` is given.

    Raises:
        UserError: an unknown data set, or nothing of its layout in the place named.
    """
    builder = builders.get(dataset)
    if raw is not None:
        folder = builders.source_folder(dataset, raw)
        table = builder.table(folder)
        return [
            check_split(name, raw_items(split), table, split.labelled)
            for name, split in builder.splits(folder).items()
        ]
    reports = []
    for name in source.split_names(data_dir, dataset):
        split = source.open_split(data_dir, dataset, name)
        ids = {i: i for i in range(split.table.num_classes)} | {IGNORE: IGNORE}
        table = LabelTable(dataset, split.table.classes, split.table.palette, ids)
        reports.append(check_split(name, prepared_items(split), table, split.labelled))
    return reports


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_enum("dataset", None, sorted(builders.BUILDERS), "Which data set.", required=True)
    flags.DEFINE_string("source", None, "A raw folder to check instead of the prepared data set.")
    flags.DEFINE_string("data_dir", "data", "Where prepared data sets live.")


def main(argv: Sequence[str]) -> int:
    """Checks what the flags say; returns the exit code."""
    del argv
    values = flags.FLAGS
    reports = check(values.dataset, data_dir=values.data_dir, raw=values.source)
    for report in reports:
        print("\n".join(report.lines()))
    problems = sum(len(report.problems) for report in reports)
    print(f"{problems or 'no'} problem{'s' if problems != 1 else ''} found")
    return 1 if problems else 0


if __name__ == "__main__":
    define_flags()
    cli.run(main)
