"""Pascal Context, 59 classes, in the paper's advanced settings.

    python -m hfgd_jax.main --config configs/pascal_context.py:method=hfgd --workdir runs/context

Arguments: backbone (of config.BACKBONES), method (of config.METHODS), weights (a file for the backbone),
tiny, without_data. Crops of 513x513 (512x512 where features are cells); 30K steps with a ResNet, 40K with
others.
"""

from ml_collections import ConfigDict

from hfgd_jax.config import recipe
from hfgd_jax.config.names import RESNETS
from hfgd_jax.geometry import grid_size


def get_config(arguments: str = "") -> ConfigDict:
    """The run's config."""
    args = recipe.arguments(arguments, backbone="resnet50")
    config = recipe.start(args)
    config.data.update({"dataset": "pascal_context", "num_classes": 59})
    config.data.crop = grid_size((512, 512), config.model.geometry)
    config.train.steps = 30_000 if args.backbone in RESNETS else 40_000
    return recipe.finish(config, args)
