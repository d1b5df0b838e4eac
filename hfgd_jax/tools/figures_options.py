"""The options that the commands of figures share, and what they stand for."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags
from etils import epath

from hfgd_jax.data.prepared import Split
from hfgd_jax.errors import UserError, require
from hfgd_jax.figures import draw, trained
from hfgd_jax.runs import saved_config, system
from hfgd_jax.runtime import storage


def define_runs(*, several: bool = False) -> None:
    """Which runs, and where the figure goes."""
    more = ", two or more" if several else ""
    flags.DEFINE_list("workdirs", None, f"Folders of runs, joined by commas{more}.", required=True)
    flags.DEFINE_list("labels", [], "What the runs are called, in their order; else their folders' names.")
    flags.DEFINE_list(
        "output", None, f"Files to write, joined by commas: {', '.join(draw.SUFFIXES)}.", required=True
    )
    flags.DEFINE_bool("overwrite", False, "Replace files that are there.")


def define_checkpoint() -> None:
    """Which checkpoint of each run."""
    flags.DEFINE_string("checkpoint", "latest", "latest, best or a step, of each run.")


def define_data() -> None:
    """Which images."""
    flags.DEFINE_string(
        "data_dir", "", "Where the data set is now; empty: where the first run's config says."
    )
    flags.DEFINE_string("split", "", "The split to look at; empty: the one that the first run is scored on.")


def outputs(values: Any, *packages: str) -> list[epath.Path]:
    """The files to write.

    Args:
        values: of the flags.
        packages: that the figure needs beside matplotlib, as in `import`.

    Raises:
        UserError: none, another suffix, a file that is there, or a package that is not.
    """
    require("this figure", "hfgd_jax[figures]", "matplotlib", *packages)
    paths = [storage.resolve(text, "--output") for text in values.output]
    for path in paths:
        if path.suffix.lower() not in draw.SUFFIXES:
            raise UserError(f"--output={path}: want a name that ends in {', '.join(draw.SUFFIXES)}")
        if path.exists() and not values.overwrite:
            raise UserError(f"--output={path}: is there already; take another name, or --overwrite")
    if not paths:
        raise UserError(f"--output: needed; a name that ends in {', '.join(draw.SUFFIXES)}")
    return paths


def read_runs(values: Any) -> dict[str, system.Trained]:
    """The runs' checkpoints by what figures call them, of the same classes, each whole on a device.

    Raises:
        UserError: no such run or checkpoint; see also `trained.names` and `trained.check_alike`.
    """
    names = trained.names(values.workdirs, values.labels)
    runs = {
        name: system.load(saved_config.get_config(workdir), workdir, values.checkpoint).local()
        for workdir, name in zip(values.workdirs, names, strict=True)
    }
    trained.check_alike(runs)
    return runs


def open_labelled(first: system.Trained, values: Any) -> Split:
    """The split to look at.

    Args:
        first: of the runs.
        values: of the flags.

    Raises:
        UserError: no such split, one without labels, or with the run's classes in another order.
    """
    config = first.system.config.copy_and_resolve_references()
    if values.data_dir:
        config.data.data_dir = values.data_dir
    split = system.open_data(config, values.split or config.data.eval_split)
    if not split.labelled:
        raise UserError(f"--split={split.split}: this split of {split.dataset!r} has no labels")
    first.table.check_order(split.table)
    return split


def spread_out(length: int, count: int) -> list[int]:
    """Up to `count` of `length` positions, as far apart as they can be; all where count is 0."""
    if count == 0 or count >= length:
        return list(range(length))
    return [int(i) for i in np.linspace(0, length - 1, count).round()]


def save(figure: Any, paths: Sequence[epath.Path]) -> None:
    """Writes the figure and says where.

    Raises:
        UserError: a file cannot be written.
    """
    try:
        draw.save(figure, paths)
    except OSError as error:
        raise UserError(f"--output={','.join(map(str, paths))}: cannot be written to ({error})") from error
    print(f"wrote {', '.join(map(str, paths))}")
