"""A data set of your own, from a folder of images and masks (docs/datasets.md).

    python -m hfgd_jax.tools.prepare --dataset folder --source MINE --data_dir data
    python -m hfgd_jax.main --config configs/folder.py:classes=5,method=hfgd,weights=resnet50.safetensors \\
        --workdir runs/folder

Arguments: classes (how many the folder has), backbone (of config.BACKBONES), method (of config.METHODS),
weights (a file for the backbone), tiny. Crops of 513x513 (512x512 where features are cells), 8 a step, 4K
steps: for a few hundred to a few thousand images, from trained weights. What else usually needs a look:
`data.crop` and `data.input_scale` for small or very large images, `train.steps`, `optim.learning_rate`.
"""

from ml_collections import ConfigDict

from hfgd_jax import config as configuration
from hfgd_jax.geometry import grid_size


def get_config(arguments: str = "") -> ConfigDict:
    """The run's config."""
    args = configuration.parse_arguments(
        arguments, classes=2, backbone="resnet50", method="hfgd", weights="", tiny=False
    )
    config = configuration.default()
    configuration.set_method(config, args.method)
    configuration.set_backbone(config, args.backbone)
    config.model.backbone.weights = args.weights
    config.data.update({"dataset": "folder", "num_classes": args.classes})
    config.data.crop = grid_size((512, 512), config.model.geometry)
    config.train.update({"steps": 4000, "batch_size": 8})
    config.model.batch_norm_decay = 0.99  # right for a run this short
    config.optim.update({"learning_rate": 1e-4, "warmup_steps": 100})
    config.eval.every = 500
    config.checkpoint.every = 500
    if args.tiny:
        configuration.set_tiny(config)
    return config
