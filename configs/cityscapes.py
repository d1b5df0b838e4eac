"""Cityscapes (fine annotations), 19 classes, in the paper's advanced settings.

    python -m hfgd_jax.main --config configs/cityscapes.py:method=hfgd --workdir runs/cityscapes

Arguments: backbone (of config.BACKBONES), method (of config.METHODS), weights (a file for the backbone),
tiny, without_data. Crops of 513x1025 (512x1024 where features are cells); 60K steps, 80K at output stride 2.
The paper's ablations take 30K (--config.train.steps=30000).
"""

from ml_collections import ConfigDict

from hfgd_jax.config import recipe
from hfgd_jax.geometry import grid_size


def get_config(arguments: str = "") -> ConfigDict:
    """The run's config."""
    args = recipe.arguments(arguments, backbone="resnet50")
    config = recipe.start(args)
    config.data.update({"dataset": "cityscapes", "num_classes": 19})
    config.data.crop = grid_size((512, 1024), config.model.geometry)
    config.train.steps = 80_000 if config.model.output_stride == 2 else 60_000
    return recipe.finish(config, args)
