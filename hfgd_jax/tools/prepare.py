"""Prepares a data set: `python -m hfgd_jax.tools.prepare --dataset camvid --source RAW --data_dir DATA`.

Where the data sets come from and how their folders look: `docs/datasets.md`.
"""

from collections.abc import Sequence

from absl import flags

from hfgd_jax.data import builders
from hfgd_jax.data.builders import base
from hfgd_jax.runtime import shell


def define_flags() -> None:
    """The command's flags."""
    embedded = ", ".join(sorted(builders.EMBEDDED))
    flags.DEFINE_enum("dataset", None, sorted(builders.BUILDERS), "Which data set.", required=True)
    flags.DEFINE_string("source", None, f"Its raw folder (not for {embedded}).")
    flags.DEFINE_string("data_dir", "data", "Where prepared data sets live.")
    flags.DEFINE_bool("overwrite", False, "Replace a prepared data set.")
    flags.DEFINE_bool("allow_partial", False, "Take a copy with other numbers of images than its owners'.")
    define_division_flags()


def define_division_flags() -> None:
    """The flags that say how a folder without splits of its own is divided."""
    default = base.DEFAULTS
    flags.DEFINE_float("val_ratio", default.val_ratio, "folder without lists: the share for validation.")
    flags.DEFINE_integer("split_seed", default.seed, "folder without lists: chooses what is for validation.")


def division_options() -> base.Options:
    """The `Options` of these flags. Raises UserError for a share that is not between 0 and 1."""
    return base.Options(flags.FLAGS.val_ratio, flags.FLAGS.split_seed)


def main(argv: Sequence[str]) -> int:
    """Prepares the data set of the flags; returns the exit code."""
    del argv
    values = flags.FLAGS
    folder = builders.prepare(
        values.dataset,
        values.source,
        values.data_dir,
        overwrite=values.overwrite,
        allow_partial=values.allow_partial,
        options=division_options(),
    )
    print(f"prepared {folder}")
    return 0


if __name__ == "__main__":
    define_flags()
    shell.run(main)
