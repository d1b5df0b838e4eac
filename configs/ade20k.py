"""ADE20K, 150 classes, in the paper's advanced settings.

    python -m hfgd_jax.main --config configs/ade20k.py:method=hfgd --workdir runs/ade20k

Arguments: backbone (of config.BACKBONES), method (of config.METHODS), weights (a file for the backbone),
tiny, without_data. Crops of 641x641 (640x640 where features are cells); 40K steps (reading: the paper does
not say).
"""

from ml_collections import ConfigDict

from hfgd_jax.config import recipe
from hfgd_jax.geometry import grid_size


def get_config(arguments: str = "") -> ConfigDict:
    """The run's config."""
    args = recipe.arguments(arguments, backbone="resnet50")
    config = recipe.start(args)
    config.data.update({"dataset": "ade20k", "num_classes": 150})
    config.data.crop = grid_size((640, 640), config.model.geometry)
    config.train.steps = 40_000
    return recipe.finish(config, args)
