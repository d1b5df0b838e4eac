"""Draws how good the backbone's last feature is in several runs, as bars (paper, Sec. 5.1).

    python -m hfgd_jax.main --workdir runs/probe --mode eval --config.eval.branch=probe
    python -m hfgd_jax.tools.figures_contamination --workdirs runs/fcn,runs/probe,runs/stop --output bars.png

A run without an upsampler is measured by its own score; one with `model.guidance.probe` by its auxiliary FCN;
one with `model.guidance.tokens` by its guide branch. The scores are those of recorded evaluations; nothing is
computed anew.
"""

import json
from collections.abc import Sequence
from typing import Any

from absl import flags

from hfgd_jax import config as configuration
from hfgd_jax.errors import UserError
from hfgd_jax.evaluation import records
from hfgd_jax.figures import contamination, draw, trained
from hfgd_jax.runs import saved_config
from hfgd_jax.runtime import shell, storage
from hfgd_jax.tools import figures_options, score_tables, tables

_BESIDE = ("branch", "details")  # settings of an evaluation in which runs may differ


def outline(workdir: str, name: str) -> records.Record:
    """What `score_tables.group` needs of a run, its `kind`, and the `mIoU` of the branch that measures it.

    The evaluation is the last one of that branch.

    Raises:
        UserError: no run, none that measures the backbone's feature, or no evaluation of its branch.
    """
    config = saved_config.get_config(workdir)
    branch, kind = contamination.measure(config.model, name)
    fields = records.changed_fields(json.loads(configuration.to_json(config)))
    record: dict[str, Any] = {"name": name, "seed": config.train.seed, "config": fields, "kind": kind}
    path = storage.resolve(workdir, "--workdirs") / "evaluations.jsonl"
    for line in reversed(storage.records(path)):
        if line.get("branch") == branch:
            settings = {key: line.get(key) for key in ("split", "scales", "flip", "window", "window_overlap")}
            return record | {"steps": line["step"], "settings": settings, "mIoU": line["mIoU"]}
    try:
        whole = records.of_run(workdir)
    except UserError:
        whole = {"settings": {}}
    if whole["settings"].get("branch") != branch:
        raise UserError(
            f"{workdir}: no evaluation of its {branch} branch; python -m hfgd_jax.main --workdir {workdir} "
            f"--mode eval --config.eval.branch={branch} makes one"
        )
    settings = {key: value for key, value in whole["settings"].items() if key not in _BESIDE}
    return record | {"steps": whole["steps"], "settings": settings, "mIoU": whole["evaluation"]["mIoU"]}


def check_settings(found: Sequence[records.Record]) -> None:
    """Makes sure that all runs were evaluated alike.

    Raises:
        UserError: two were not.
    """
    for record in found[1:]:
        for key, value in found[0]["settings"].items():
            if record["settings"].get(key) != value:
                raise UserError(
                    f"--workdirs: {found[0]['name']} was evaluated with eval.{key}={value}, {record['name']} "
                    f"with {record['settings'].get(key)}; evaluate both alike"
                )


def define_flags() -> None:
    """The command's flags."""
    figures_options.define_runs()


def main(_: Sequence[str]) -> int:
    """Draws the bars and prints their values; returns the exit code."""
    v = flags.FLAGS
    paths = figures_options.outputs(v)
    names = trained.names(v.workdirs, [])
    found = [outline(workdir, name) for workdir, name in zip(v.workdirs, names, strict=True)]
    check_settings(found)
    groups = [
        draw.Bar(group.label, runs[0]["kind"], [run["mIoU"] or 0.0 for run in runs])
        for group in score_tables.group(found, v.labels)
        for runs in [list(group.runs.values())]
    ]
    rows = [["run", "mIoU %", "seeds", "less the first", "measured by"]]
    first = sum(groups[0].scores) / len(groups[0].scores)
    for bar in groups:
        mean = sum(bar.scores) / len(bar.scores)
        numbers = (f"{100 * mean:.2f}", str(len(bar.scores)), f"{100 * (mean - first):+.2f}")
        rows.append([bar.label, *numbers, bar.kind])
    print(tables.render(rows, "text"))
    figures_options.save(draw.bars(groups, "mIoU of the backbone's feature, %"), paths)
    return 0


if __name__ == "__main__":
    define_flags()
    shell.run(main)
