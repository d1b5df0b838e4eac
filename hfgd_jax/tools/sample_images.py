"""Writes pictures of a prepared data set as PNG files, something to hand to `--mode predict`.

python -m hfgd_jax.tools.sample_images --dataset shapes --split val --count 6 --output pictures
"""

import re
from pathlib import Path

from absl import flags

from hfgd_jax import cli
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


def main(_: list[str]) -> int:
    """Writes the files and says where they are."""
    split = open_split(_DATA_DIR.value, _DATASET.value, _SPLIT.value)
    written = sample(split, _COUNT.value, Path(_OUTPUT.value))
    print(f"{len(written)} images of {_DATASET.value}/{_SPLIT.value} in {_OUTPUT.value}")
    return 0


if __name__ == "__main__":
    _DATASET = flags.DEFINE_string("dataset", None, "Name of a prepared data set.")
    _DATA_DIR = flags.DEFINE_string("data_dir", "data", "Where prepared data sets are.")
    _SPLIT = flags.DEFINE_string("split", "val", "Split to take the images from.")
    _COUNT = flags.DEFINE_integer("count", 6, "How many.", lower_bound=1)
    _OUTPUT = flags.DEFINE_string("output", None, "Folder for the PNG files.")
    flags.mark_flags_as_required(["dataset", "output"])
    cli.run(main)
