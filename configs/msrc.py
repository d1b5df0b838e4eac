"""MSRC v2, 21 classes of objects and scenes in 320x213 pixels, on two CPU cores: a folder of one's own.

    python -m hfgd_jax.tools.prepare --dataset folder --source msrc --data_dir data/msrc
    python -m hfgd_jax.main --config configs/msrc.py:method=hfgd,weights=pip:efficientnet_lite0 \\
        --workdir runs/msrc --config.data.data_dir=data/msrc

Arguments: backbone (of config.BACKBONES), method (of config.METHODS), weights (a file or a name for the
backbone, docs/weights.md), tiny, without_data. docs/msrc.md has the results.
"""

from ml_collections import ConfigDict

from hfgd_jax.config import recipe


def get_config(arguments: str = "") -> ConfigDict:
    """The run's config."""
    args = recipe.arguments(arguments, backbone="efficientnet_lite0")
    config = recipe.start(args)
    config.model.channels = 96
    config.model.batch_norm_decay = 0.98
    config.data.update({"dataset": "folder", "num_classes": 21, "crop": (161, 225)})
    config.data.update({"photometric": "plain", "scale_range": (0.5, 1.5)})
    config.train.update({"steps": 800, "batch_size": 8, "dtype": "float32"})
    config.optim.update({"learning_rate": 1e-3, "warmup_steps": 50})
    config.eval.every = 400
    config.checkpoint.every = 200
    return recipe.finish(config, args)
