"""The scores of finished runs side by side, class by class.

python -m hfgd_jax.tools.scores --workdirs runs/demo,runs/demo-fcn
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from etils import epath

from hfgd_jax import cli, storage
from hfgd_jax.errors import UserError


def read(workdir: epath.PathLike) -> dict[str, Any]:
    """The last evaluation of a run, from its `metrics.json`.

    Raises:
        UserError: there is none.
    """
    path = storage.place(workdir, "--workdirs") / "metrics.json"
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{workdir}: holds no evaluation ({path}: {error})") from error


def table(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """IoU in percent, a column per run; of two runs also what the first has over the second.

    Args:
        runs: name to evaluation, as in `metrics.json`.
    """
    classes = dict.fromkeys(name for scores in runs.values() for name in scores["per_class"])
    rows = [(name, [scores["per_class"].get(name) for scores in runs.values()]) for name in classes]
    rows.append(("mIoU", [scores["mIoU"] for scores in runs.values()]))
    head = [*runs, "difference"] if len(runs) == 2 else list(runs)
    first = max(len("IoU %"), *(len(name) for name, _ in rows))
    widths = [max(7, len(name)) for name in head]
    lines = ["  ".join(["IoU %".ljust(first), *(n.rjust(w) for n, w in zip(head, widths, strict=True))])]
    for name, values in rows:
        cells = ["n/a" if v is None else f"{100 * v:.2f}" for v in values]
        if len(runs) == 2:
            cells.append("n/a" if None in values else f"{100 * (values[0] - values[1]):+.2f}")
        cells = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        lines.append("  ".join([name.ljust(first), *cells]))
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_list("workdirs", None, "Folders of finished runs, joined by commas.", required=True)


def main(_: Sequence[str]) -> int:
    """Prints the table; returns the exit code."""
    print(table({epath.Path(workdir).name: read(workdir) for workdir in flags.FLAGS.workdirs}))
    return 0


if __name__ == "__main__":
    define_flags()
    cli.run(main)
