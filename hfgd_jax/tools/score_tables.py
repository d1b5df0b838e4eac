"""Tables of runs' scores over their seeds; pure functions of records (`hfgd_jax/evaluation/records.py`)."""

import dataclasses
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence

from hfgd_jax.errors import UserError
from hfgd_jax.evaluation import records
from hfgd_jax.evaluation.records import Record
from hfgd_jax.tools import tables

_MEANS = ("mIoU", "pixel_accuracy", "boundary_IoU", "small_object_recall")

ScoresByTitle = dict[str, float | None]  # by title, in [0, 1]
Values = dict[int, float | None]  # by seed, in [0, 1]


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone.

    Attributes:
        label: what the tables call it.
        runs: records by seed, in the order of the seeds.
    """

    label: str
    runs: dict[int, Record]


@dataclasses.dataclass(frozen=True)
class Row:
    """One score of all groups.

    Attributes:
        title: the class, or what the score is.
        values: for each group, by seed; None where a run lacks it.
    """

    title: str
    values: list[Values]

    def difference(self) -> Values:
        """First group less second, of the runs of the same seed."""
        one, two = self.values[:2]
        return {
            seed: None if None in (value, two[seed]) else value - two[seed]
            for seed, value in one.items()
            if seed in two
        }


def group(found: Iterable[Record], labels: Sequence[str] = ()) -> list[Group]:
    """Puts runs that differ in their seed alone together, in the order of the first of each.

    Args:
        found: records, or what `records.of_run` gives.
        labels: of the groups; empty: the names of their first runs.

    Raises:
        UserError: a seed twice in a group, another number of labels, or two groups of one label.
    """
    alike: dict[str, list[Record]] = {}
    for record in found:
        common = json.dumps(records.but_for_the_seed(record), sort_keys=True)
        alike.setdefault(common, []).append(record)
    names = [runs[0]["name"] for runs in alike.values()]
    if labels and len(labels) != len(names):
        raise UserError(f"--labels={','.join(labels)}: {len(labels)}, but the groups are {', '.join(names)}")
    labels, commons = list(labels or names), [json.loads(common) for common in alike]
    for i, label in enumerate(labels):
        if (first := labels.index(label)) < i:
            one, two = commons[first], commons[i]
            fields = sorted(key for key in one | two if one.get(key) != two.get(key))
            raise UserError(
                f"two groups are called {label!r}, and differ in {', '.join(fields)}; name them with --labels"
            )
    return [Group(label, _by_seed(label, runs)) for label, runs in zip(labels, alike.values(), strict=True)]


def _by_seed(label: str, runs: Sequence[Record]) -> dict[int, Record]:
    seeds = [record["seed"] for record in runs]
    if twice := [seed for seed in set(seeds) if seeds.count(seed) > 1]:
        names = ", ".join(record["name"] for record in runs if record["seed"] == twice[0])
        raise UserError(f"{label}: seed {twice[0]} twice, with the same config ({names}); leave one out")
    return {record["seed"]: record for record in sorted(runs, key=lambda record: record["seed"])}


def rows(groups: Sequence[Group], selected: Sequence[str] = (), *, curve: bool = False) -> list[list[Row]]:
    """Two parts: the IoU of each class; the means.

    Args:
        groups: of runs.
        selected: classes whose mean IoU is a row of its own.
        curve: a row of the mIoU at each evaluation of the training before the last, too.

    Raises:
        UserError: a selected class that no run has.
    """
    parts = []
    for part in (_classes, lambda record: _means(record, selected, curve)):
        scores = [{seed: part(record) for seed, record in one.runs.items()} for one in groups]
        titles = dict.fromkeys(title for runs in scores for run in runs.values() for title in run)
        parts.append(
            [
                Row(title, [{seed: run.get(title) for seed, run in runs.items()} for runs in scores])
                for title in titles
            ]
        )
    known = [row.title for row in parts[0]]
    if unknown := [name for name in selected if name not in known]:
        raise UserError(f"--classes: no {', '.join(unknown)}; the runs' classes are {', '.join(known)}")
    return parts


def _classes(record: Record) -> ScoresByTitle:
    return record["evaluation"]["per_class"]


def _means(record: Record, selected: Sequence[str], curve: bool) -> ScoresByTitle:
    found = {}
    if selected:
        values = [value for name in selected if (value := _classes(record).get(name)) is not None]
        found[f"mean of {', '.join(selected)}"] = statistics.mean(values) if values else None
    found |= {
        key.replace("_", " "): record["evaluation"][key] for key in _MEANS if key in record["evaluation"]
    }
    if curve:
        earlier = {step: value for step, value in record["curve"].items() if int(step) < record["steps"]}
        found |= {f"mIoU at step {step}": value for step, value in earlier.items()}
    return found


def spread(values: Iterable[float | None]) -> tuple[float, float | None, int] | None:
    """Mean, standard deviation (n - 1 in the divisor; None of one value) and n of what is not None."""
    present = [value for value in values if value is not None]
    if not present:
        return None
    deviation = statistics.stdev(present) if len(present) > 1 else None
    return statistics.mean(present), deviation, len(present)


def report(groups: Sequence[Group], parts: Sequence[Sequence[Row]], form: str) -> str:
    """The table of all groups in per cent, with the difference of the first two, and what it consists of.

    Where the first two groups have two seeds or more in common, a second table has the difference of each
    seed, and of how many it is positive.

    Args:
        groups: of runs.
        parts: of `rows`, for these groups.
        form: of `tables.FORMATS`.
    """
    common = [seed for seed in groups[0].runs if seed in groups[1].runs] if len(groups) > 1 else []
    cells = [["IoU %", *(one.label for one in groups), *(["difference"] if common else [])]]
    ends, every = 1 + len(parts[0]), [row for part in parts for row in part]
    for row in every:
        difference = [_cell(row.difference(), "+")] if common else []
        cells.append([row.title, *map(_cell, row.values), *difference])
    blocks = [tables.render(cells, form, {ends}), _list(_notes(groups, common), form)]
    if len(common) > 1:
        head = [f"{groups[0].label} - {groups[1].label}", *(f"seed {seed}" for seed in common), "positive"]
        each = [[row.title, *_per_seed(row.difference())] for row in every]
        blocks.append(tables.render([head, *each], form, {ends}))
    return "\n\n".join(blocks)


def _cell(values: Mapping[int, float | None], sign: str = "") -> str:
    """Mean and deviation in per cent; with how many values there are, where some run has none."""
    if (found := spread(values.values())) is None:
        return "n/a"
    mean, deviation, number = found
    text = f"{100 * mean:{sign}.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")
    return text if number == len(values) else f"{text} (n = {number})"


def _per_seed(difference: Values) -> list[str]:
    present = [value for value in difference.values() if value is not None]
    cells = ["n/a" if value is None else f"{100 * value:+.2f}" for value in difference.values()]
    return [*cells, f"{sum(value > 0 for value in present)} of {len(present)}"]


def _notes(groups: Sequence[Group], common: Sequence[int]) -> list[str]:
    notes = []
    for one in groups:
        seeds, steps = ", ".join(map(str, one.runs)), next(iter(one.runs.values()))["steps"]
        runs = f"n = {len(one.runs)}, seeds {seeds}" if len(one.runs) > 1 else f"one run, seed {seeds}"
        notes.append(f"{one.label}: {runs}; step {steps}")
    if any(len(one.runs) > 1 for one in groups):
        notes.append("±: standard deviation over seeds (n - 1 in the divisor)")
    if common:
        notes.append(f"difference: {groups[0].label} - {groups[1].label}, between runs of the same seed")
    elif len(groups) > 1:
        notes.append(f"no difference: {groups[0].label} and {groups[1].label} have no seed in common")
    return notes


def _list(lines: Sequence[str], form: str) -> str:
    return "\n".join(f"- {line}" if form == "markdown" else line for line in lines)
