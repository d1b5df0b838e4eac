"""COCO-Stuff, 171 classes, in the paper's advanced settings: the 164k or the 10k set.

    python -m hfgd_jax.main --config configs/coco_stuff.py:size=10k,method=hfgd --workdir runs/coco_stuff

Arguments: size (164k or 10k), backbone (of config.BACKBONES), method (of config.METHODS), weights (a file for
the backbone), tiny, without_data. Crops of 513x513 (512x512 where features are cells); 40K steps.
"""

from ml_collections import ConfigDict

from hfgd_jax.config import recipe
from hfgd_jax.config.checks import one_of
from hfgd_jax.geometry import grid_size

EVAL_SPLITS = {"164k": "val", "10k": "test"}


def get_config(arguments: str = "") -> ConfigDict:
    """The run's config."""
    args = recipe.arguments(arguments, backbone="resnet50", size="164k")
    one_of("size", args.size, EVAL_SPLITS)
    config = recipe.start(args)
    config.data.update({"dataset": f"coco_stuff{args.size}", "num_classes": 171})
    config.data.eval_split = EVAL_SPLITS[args.size]
    config.data.crop = grid_size((512, 512), config.model.geometry)
    config.train.steps = 40_000
    return recipe.finish(config, args)
