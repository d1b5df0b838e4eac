"""Prepares a data set: `python -m hfgd_jax.tools.prepare --dataset camvid --source RAW --data_dir DATA`."""

from collections.abc import Sequence

from absl import flags

from hfgd_jax import cli
from hfgd_jax.data import builders


def define_flags() -> None:
    """The command's flags."""
    embedded = ", ".join(sorted(builders.EMBEDDED))
    flags.DEFINE_enum("dataset", None, sorted(builders.BUILDERS), "Which data set.", required=True)
    flags.DEFINE_string("source", None, f"Its raw folder (not for {embedded}).")
    flags.DEFINE_string("data_dir", "data", "Where prepared data sets live.")
    flags.DEFINE_bool("overwrite", False, "Replace a prepared data set.")


def main(argv: Sequence[str]) -> int:
    """Prepares what the flags say; returns the exit code."""
    del argv
    values = flags.FLAGS
    folder = builders.prepare(values.dataset, values.source, values.data_dir, overwrite=values.overwrite)
    print(f"prepared {folder}")
    return 0


if __name__ == "__main__":
    define_flags()
    cli.run(main)
