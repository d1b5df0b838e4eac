"""CamVid, 11 classes: small crops and narrow layers for two CPU cores, or the paper's (`full`).

    python -m hfgd_jax.main --config configs/camvid.py:backbone=resnet18,method=hfgd --workdir runs/camvid

Arguments: backbone (of config.BACKBONES), method (of config.METHODS), weights (a file for the backbone), full
(whole images, the paper's widths), tiny, without_data.
"""

from ml_collections import ConfigDict

from hfgd_jax.config import recipe


def get_config(arguments: str = "") -> ConfigDict:
    """The run's config."""
    args = recipe.arguments(arguments, backbone="resnet18", full=False)
    config = recipe.start(args)
    config.data.update({"dataset": "camvid", "num_classes": 11, "crop": (361, 481)})
    config.train.update({"steps": 8000, "batch_size": 8})
    config.model.batch_norm_decay = 0.98
    config.optim.update({"learning_rate": 2e-3, "warmup_steps": 50})
    config.data.update({"photometric": "plain", "scale_range": (0.5, 1.25)})
    config.eval.every = 400
    config.checkpoint.every = 200
    if not args.full:
        config.model.channels = 96
        config.data.crop = (161, 193)
        config.train.update({"steps": 1200, "dtype": "float32"})
    return recipe.finish(config, args)
