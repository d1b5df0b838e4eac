"""Writes images of a prepared data set as PNG files, for `--mode predict` to read.

python -m hfgd_jax.tools.sample_images --dataset shapes --split val --count 6 --output images
"""

from collections.abc import Sequence

import numpy as np
from absl import flags
from etils import epath
from jaxtyping import UInt8

from hfgd_jax.data import builders
from hfgd_jax.data.prepared import Split, open_split
from hfgd_jax.errors import UserError
from hfgd_jax.inference.predict import Unreadable, read_image
from hfgd_jax.inference.render import write_image
from hfgd_jax.runtime import shell, storage


def sample(split: Split, count: int, output: epath.Path) -> list[epath.Path]:
    """Writes `count` images, spread evenly over the split, as `OUTPUT/RECORD_ID.png`; leaves those there.

    Raises:
        UserError: `output` cannot be written, or holds another file of such a name.
    """
    count = min(count, len(split))
    written = []
    try:
        output.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            example = split.example(i * len(split) // count)
            path = output / f"{storage.file_name(example['id'])}.png"
            if not path.exists():
                write_image(path, example["image"])
            elif not _holds(path, example["image"]):
                raise UserError(f"--output={output}: holds another {path.name}; choose another folder")
            written.append(path)
    except OSError as error:
        raise UserError(f"--output={output}: {error}") from error
    return written


def _holds(path: epath.Path, image: UInt8[np.ndarray, "h w 3"]) -> bool:
    try:
        return np.array_equal(read_image(path), image)
    except Unreadable:
        return False


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
    written = sample(split, values.count, storage.resolve(values.output, "--output"))
    print(f"{len(written)} images of {values.dataset}/{values.split} in {values.output}")
    return 0


if __name__ == "__main__":
    define_flags()
    shell.run(main)
