"""Draws loss, mIoU and learning rate of runs by step; over seeds the mean and the spread.

    python -m hfgd_jax.tools.figures_curves --workdirs runs/sfpn,runs/hfgd --output curves.png
    python -m hfgd_jax.tools.figures_curves --workdirs runs/a_0,runs/a_1,runs/b --labels A,B --output c.png

Runs that differ in `train.seed` alone are one line, with a band of the standard deviation. It reads
`config.json` and `metrics.jsonl`: a run need not be finished.
"""

import json
from collections.abc import Sequence
from typing import Any

from absl import flags

from hfgd_jax import config as configuration
from hfgd_jax.errors import UserError
from hfgd_jax.evaluation import records
from hfgd_jax.figures import curves, draw, trained
from hfgd_jax.runs import saved_config
from hfgd_jax.runtime import shell, storage
from hfgd_jax.tools import figures_options, score_tables, tables

QUANTITIES = {"loss": "loss", "mIoU": "mIoU, %", "learning_rate": "learning rate"}


def outline(workdir: str, name: str) -> records.Record:
    """What `score_tables.group` needs of a run that may not be finished, and its `lines`.

    Raises:
        UserError: no run, or one without a line in `metrics.jsonl`.
    """
    config = saved_config.get_config(workdir)
    lines = storage.records(storage.resolve(workdir, "--workdirs") / "metrics.jsonl")
    if not lines:
        raise UserError(f"{workdir}: metrics.jsonl has no line yet; nothing was trained or logged")
    fields = records.changed_fields(json.loads(configuration.to_json(config)))
    common: dict[str, Any] = {"config": fields, "settings": {}, "steps": config.train.steps}
    return {"name": name, "seed": config.train.seed, "lines": lines} | common


def panels(groups: Sequence[score_tables.Group]) -> dict[str, dict[str, curves.Curve]]:
    """By quantity (with its unit) and group the curve; without quantities and groups that have none."""
    found: dict[str, dict[str, curves.Curve]] = {}
    for key, title in QUANTITIES.items():
        for group in groups:
            runs = [curves.series(run["lines"], key) for run in group.runs.values()]
            curve = curves.over_seeds(runs)
            if not curve.steps.size:
                continue
            if key == "mIoU":
                curve = curves.Curve(curve.steps, 100 * curve.mean, 100 * curve.deviation)
            count = len(runs)
            name = group.label if count == 1 else f"{group.label}, {count} seeds"
            found.setdefault(title, {})[name] = curve
    return found


def define_flags() -> None:
    """The command's flags."""
    figures_options.define_runs()
    flags.DEFINE_bool("log_loss", False, "A logarithmic axis for the loss.")


def main(_: Sequence[str]) -> int:
    """Draws the curves and prints their last values; returns the exit code."""
    v = flags.FLAGS
    paths = figures_options.outputs(v)
    names = trained.names(v.workdirs, [])
    found = [outline(workdir, name) for workdir, name in zip(v.workdirs, names, strict=True)]
    by_quantity = panels(score_tables.group(found, v.labels))
    rows = [["last value of", "run", "step", "mean", "deviation"]]
    for quantity, groups in by_quantity.items():
        for name, curve in groups.items():
            last = (f"{curve.mean[-1]:.4g}", f"{curve.deviation[-1]:.2g}")
            rows.append([quantity, name, f"{curve.steps[-1]:.0f}", *last])
    print(tables.render(rows, "text"))
    figure = draw.curves(by_quantity, [QUANTITIES["loss"]] if v.log_loss else [])
    figures_options.save(figure, paths)
    return 0


if __name__ == "__main__":
    define_flags()
    shell.run(main)
