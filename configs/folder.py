"""A data set of your own, from a folder of images and masks (docs/custom-data.md).

    python -m hfgd_jax.main --config configs/folder.py:classes=3,images=480x360,small --workdir runs/mine

Arguments: classes (how many the folder has), images (the size of most of them, WIDTHxHEIGHT; `check_dataset`
prints both), small, backbone (of config.BACKBONES; resnet50, or resnet18 if small), method (of
config.METHODS), weights (a file for the backbone), tiny, without_data.

Images longer than 1024 pixels are scaled down to that; crops are as large as an image, at most 513x513
(512x512 where features are cells), 8 a step, 4K steps: for a few hundred to a few thousand images, from
trained weights, on an accelerator. `small` is for a first look on any machine: images 240 pixels long, narrow
layers, float32 and 300 steps, minutes on two CPU cores.
"""

import re

from ml_collections import ConfigDict

from hfgd_jax.config import recipe
from hfgd_jax.errors import UserError
from hfgd_jax.geometry import grid_size

LONGEST, LONGEST_SMALL = 1024, 240  # pixels of an image's longer side, after scaling down
CROP = 512  # pixels of a crop's side, at most, before it is put on the model's grid


def get_config(arguments: str = "") -> ConfigDict:
    """The run's config."""
    args = recipe.arguments(arguments, backbone="", classes=2, images="512x512", small=False)
    args.backbone = args.backbone or ("resnet18" if args.small else "resnet50")
    config = recipe.start(args)
    config.data.update({"dataset": "folder", "num_classes": args.classes})
    fit(config, args.images, LONGEST_SMALL if args.small else LONGEST)
    config.train.update({"steps": 4000, "batch_size": 8})
    config.model.batch_norm_decay = 0.99  # right for a run this short
    config.optim.update({"learning_rate": 1e-4, "warmup_steps": 100})
    config.eval.every = 500
    config.checkpoint.every = 500
    if args.small:
        config.model.update({"channels": 64, "context_channels": 256, "wide_channels": 512})
        config.model.batch_norm_decay = 0.95
        config.data.update({"scale_range": (0.75, 1.25), "photometric": "plain"})
        config.train.update({"steps": 300, "dtype": "float32"})
        config.optim.update({"learning_rate": 1e-3, "warmup_steps": 30})
        config.eval.every = 100
        config.checkpoint.every = 100
    return recipe.finish(config, args)


def fit(config: ConfigDict, images: str, longest: int) -> None:
    """Sets `data.input_scale` and `data.crop` for images of a size.

    Args:
        config: to set; its backbone's geometry is set already.
        images: WIDTHxHEIGHT.
        longest: what the longer side is scaled down to, in pixels.

    Raises:
        UserError: no such size.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", images)
    width, height = map(int, match.groups()) if match else (0, 0)
    if min(width, height) < 1:
        raise UserError(f"config argument 'images={images}': want WIDTHxHEIGHT, such as 480x360")
    scale = min(1.0, round(longest / max(width, height), 3))
    sides = (min(CROP, round(side * scale)) for side in (height, width))
    whole = tuple(max(64, side // 32 * 32) for side in sides)
    config.data.update({"input_scale": scale, "crop": grid_size(whole, config.model.geometry)})
