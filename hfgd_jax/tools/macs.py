"""Counts a model's multiply-accumulates and parameters, part by part, by tracing alone.

python -m hfgd_jax.tools.macs --config configs/paper.py:table9/hfgd_os4 --size 513x513
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from ml_collections import ConfigDict, config_flags

from hfgd_jax import config as configuration
from hfgd_jax.errors import UserError
from hfgd_jax.models import build_model, macs
from hfgd_jax.runtime import shell

PARTS = ("backbone", "context", "upsampler", "axial_attention", "class_tokens")
GUIDANCE = ("axial_attention", "class_tokens")


def inference_macs(config: ConfigDict, size: tuple[int, int]) -> tuple[dict[str, int], dict[str, int]]:
    """Counts of one image's inference and of the parameters, each by part.

    Args:
        config: of a run, valid.
        size: height and width of the image.

    Returns:
        Multiply-accumulates and numbers of parameters. The keys are `PARTS` and, where there is something
        outside of them, its name or `other`. Parameters that only training uses are counted too.
    """
    model = build_model(config.model, config.data.num_classes, jnp.dtype(config.train.dtype))
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)

    def init(key: jax.Array, images: jax.Array) -> Any:
        return model.init(key, images, train=True)

    variables = jax.eval_shape(init, jax.random.key(0), images)
    counts = macs.count(lambda v, x: model.apply(v, x, train=False).logits, variables, images)
    # The product with the tokens stands in the segmenter itself, outside of every part.
    segmenter = type(model).__name__
    counts[f"{segmenter}/class_tokens"] = counts.pop(segmenter, 0)
    return macs.by_part(counts, PARTS), {
        name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
        for name, tree in variables["params"].items()
    }


def report(counts: Mapping[str, int], parameters: Mapping[str, int]) -> str:
    """A line per part, the guidance's share, and `total: N GMACs`."""
    total, lines = sum(counts.values()), [f"{'part':<16} {'GMACs':>9} {'share':>7} {'parameters':>12}"]
    for part in dict.fromkeys([*counts, *parameters]):
        macs_here, held = counts.get(part, 0), parameters.get(part, 0)
        if macs_here or held:
            lines.append(f"{part:<16} {macs_here / 1e9:>9.2f} {macs_here / total:>7.1%} {held:>12,}")
    guidance = sum(counts[part] for part in GUIDANCE)
    lines.append(f"{'all':<16} {total / 1e9:>9.2f} {'100.0%':>7} {sum(parameters.values()):>12,}")
    lines.append(f"guidance (axial attention, class tokens): {guidance / total:.1%}")
    lines.append(f"total: {total / 1e9:.2f} GMACs")
    return "\n".join(lines)


def parse_size(text: str, flag: str = "--size") -> tuple[int, int]:
    """Reads `HEIGHTxWIDTH`; `flag` is for messages.

    Raises:
        UserError: anything else, or a side beyond 1 to 65536.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or not all(1 <= int(side) <= 65_536 for side in match.groups()):
        raise UserError(f"{flag}={text}: want HEIGHTxWIDTH, such as 513x513")
    return int(match[1]), int(match[2])


def define_flags() -> None:
    """The command's flags."""
    config_flags.DEFINE_config_file("config", None, "Config file, with arguments after a colon.")
    flags.DEFINE_string("size", "", "HEIGHTxWIDTH of the image; empty: the config's crop.")
    flags.mark_flag_as_required("config")


def main(_: Sequence[str]) -> int:
    """Prints the report of `--config` at `--size`; returns the exit code."""
    values = flags.FLAGS
    configuration.validate(values.config)
    size = parse_size(values.size) if values.size else tuple(values.config.data.crop)
    print(f"1 image of {size[0]}x{size[1]}, {values.config.data.num_classes} classes, inference")
    print(report(*inference_macs(values.config, size)))
    return 0


if __name__ == "__main__":
    define_flags()
    shell.run(main)
