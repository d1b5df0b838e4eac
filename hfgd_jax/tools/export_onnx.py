"""Writes a bundle's float32 model as an ONNX file of one size, and compares the two in onnxruntime.

python -m hfgd_jax.tools.export_onnx --bundle BUNDLE --size 513x513 --output model.onnx

Needs an environment of its own with jax2onnx, onnx and onnxruntime: jax2onnx wants an older orbax than
training was tested with (docs/export.md).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from hfgd_jax import config as configuration
from hfgd_jax.errors import UserError
from hfgd_jax.export import loader
from hfgd_jax.export.program import Program
from hfgd_jax.geometry import grid_size
from hfgd_jax.runtime import shell
from hfgd_jax.tools.macs import parse_size

BOUND = 1e-4  # of the largest difference, relative to the largest logit


def at_size(folder: Path, size: tuple[int, int], batch: int) -> tuple[Callable[..., Any], Any]:
    """The bundle's function of images of one size on the grid, with its weights in it, and its argument.

    Raises:
        UserError: no bundle, or a size off the grid.
    """
    try:
        model = loader.load(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"--bundle={folder}: cannot be read ({error})") from error
    config = configuration.from_json((folder / "config.json").read_text())
    grid = grid_size(size, config.model.geometry)
    if grid != size:
        raise UserError(f"--size={size[0]}x{size[1]}: not on the model's grid; use {grid[0]}x{grid[1]}")
    program, weights = Program(config, "float32"), jax.device_get(model.weights)
    rows, columns = (jnp.arange(side, dtype=jnp.float32) for side in size)

    def function(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        return program(weights, images, rows, columns)

    return function, jax.ShapeDtypeStruct((batch, *size, 3), jnp.uint8)


def convert(folder: Path, size: tuple[int, int], batch: int, output: Path) -> list[str]:
    """Writes `output` once onnxruntime's logits equal those of the bundle; returns the lines of a report.

    Raises:
        UserError: something at `output`, packages are missing, or the logits differ by more than `BOUND`.
    """
    try:
        import jax2onnx
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(f"export_onnx: {error}; see docs/export.md for the environment it needs") from None
    if output.exists():
        raise UserError(f"--output={output}: exists; choose another")
    function, argument = at_size(folder, size, batch)
    made = jax2onnx.to_onnx(function, inputs=[argument], model_name="hfgd_jax")
    session = onnxruntime.InferenceSession(made.SerializeToString())
    images = np.random.default_rng(0).integers(0, 256, argument.shape).astype(np.uint8)
    masks, logits = session.run(None, {session.get_inputs()[0].name: images})
    wanted = loader.load(folder)(images, logits=True)
    difference = float(np.abs(logits - wanted).max() / np.abs(wanted).max())
    if not difference <= BOUND:
        raise UserError(
            f"export_onnx: {difference:.1e} of the largest logit away from the bundle; not written"
        )
    temporary = output.with_name(output.name + ".tmp")
    onnx.save(made, temporary)
    temporary.replace(output)
    return [
        f"max |difference| {difference:.1e} of the largest logit, "
        f"{np.mean(masks != wanted.argmax(-1)):.3%} of the mask's pixels differ",
        f"wrote {output}: {output.stat().st_size / 1e6:.1f} MB; uint8 [{batch}, {size[0]}, {size[1]}, 3] -> "
        "masks, logits",
    ]


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string("bundle", None, "Folder that --mode export wrote.", required=True)
    flags.DEFINE_string("size", None, "HEIGHTxWIDTH of the images, on the model's grid.", required=True)
    flags.DEFINE_integer("batch", 1, "Images at a time.", lower_bound=1)
    flags.DEFINE_string("output", None, "The file to write.", required=True)


def main(_: Sequence[str]) -> int:
    """Converts what the flags say; returns the exit code."""
    v = flags.FLAGS
    for line in convert(Path(v.bundle), parse_size(v.size), v.batch, Path(v.output)):
        print(line)
    return 0


if __name__ == "__main__":
    define_flags()
    shell.run(main)
