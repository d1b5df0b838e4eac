"""Pascal Context, 59 classes (spec 2), in the paper's advanced settings.

    python -m hfgd_jax.main --config configs/pascal_context.py:method=hfgd --workdir runs/context

Arguments: backbone (of config.BACKBONES), method (of config.METHODS), weights (a file for the backbone),
tiny. Crops of 513x513 (512x512 where features are cells); 30K steps with a ResNet, 40K with others.
"""

from ml_collections import ConfigDict

from hfgd_jax import config as configuration
from hfgd_jax.geometry import grid_size


def get_config(arguments: str = "") -> ConfigDict:
    """The run's config."""
    args = configuration.parse_arguments(
        arguments, backbone="resnet50", method="hfgd", weights="", tiny=False
    )
    config = configuration.default()
    configuration.set_method(config, args.method)
    configuration.set_backbone(config, args.backbone)
    config.model.backbone.weights = args.weights
    config.data.update({"dataset": "pascal_context", "num_classes": 59})
    config.data.crop = grid_size((512, 512), config.model.geometry)
    config.train.steps = 30_000 if args.backbone in configuration.RESNETS else 40_000
    if args.tiny:
        configuration.set_tiny(config)
    return config
