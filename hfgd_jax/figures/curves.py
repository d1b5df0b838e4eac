"""A training as curves: one quantity of several runs by step; pure functions of lines of `metrics.jsonl`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

Series = Mapping[int, float]  # by step


class Curve(NamedTuple):
    """One quantity of runs of several seeds: steps, the mean, and the deviation (0 of one run); float64."""

    steps: Float[np.ndarray, " n"]
    mean: Float[np.ndarray, " n"]
    deviation: Float[np.ndarray, " n"]


def series(lines: Iterable[Mapping[str, Any]], key: str) -> dict[int, float]:
    """A quantity by step, of the lines that have it; of several lines of a step the last one's."""
    return {line["step"]: float(line[key]) for line in lines if line.get(key) is not None}


def over_seeds(runs: Sequence[Series]) -> Curve:
    """Mean and standard deviation (n - 1 in the divisor) at the steps that all of the runs have."""
    steps = sorted(set.intersection(*(set(run) for run in runs)))
    values = np.array([[run[step] for step in steps] for run in runs], np.float64)
    deviation = values.std(axis=0, ddof=1) if len(runs) > 1 else np.zeros(len(steps))
    return Curve(np.array(steps, np.float64), values.mean(axis=0), deviation)
