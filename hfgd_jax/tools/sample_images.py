"""Writes pictures of a prepared data set as PNG files, something to hand to `--mode predict`.

python -m hfgd_jax.tools.sample_images --dataset shapes --split val --count 6 --output pictures
"""

import re
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from hfgd_jax import cli
from hfgd_jax.data import builders
from hfgd_jax.data.source import Split, open_split
from hfgd_jax.errors import UserError
from hfgd_jax.render import write_image


def sample(split: Split, count: int, output: Path) -> list[Path]:
    """Writes `count` images, spread evenly over the split, as `OUTPUT/RECORD_ID.png`; replaces those there.

    Raises:
        UserError: `output` cannot be made.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={output}: {error}") from error
    count = min(count, len(split))
    written = []
    for i in range(count):
        example = split.example(i * len(split) // count)
        path = output / (re.sub(r"[^\w.-]", "_", example["id"]) + ".png")
        write_image(path, example["image"])
        written.append(path)
    return written


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_enum("dataset", None, sorted(builders.BUILDERS), "Which prepared data set.", required=True)
    flags.DEFINE_string("data_dir", "data", "Where prepared data sets live.")
    flags.DEFINE_string("split", "val", "The split to take images from.")
    flags.DEFINE_integer("count", 6, "How many.", lower_bound=1)
    flags.DEFINE_string("output", None, "Folder for the PNG files.", required=True)


def main(_: Sequence[str]) -> int:
    """Writes the files and says where they are; returns the exit code."""
    values = flags.FLAGS
    split = open_split(values.data_dir, values.dataset, values.split)
    written = sample(split, values.count, Path(values.output))
    print(f"{len(written)} images of {values.dataset}/{values.split} in {values.output}")
    return 0


if __name__ == "__main__":
    define_flags()
    cli.run(main)
