"""HFGD on the embedded data set `shapes`, in minutes on two CPU cores.

    python -m hfgd_jax.main --config configs/demo.py --workdir runs/demo

Arguments: method (fcn | sa_car | cae | sfpn | hfgd | hfgd_os2), tiny.
"""

from ml_collections import ConfigDict

from hfgd_jax import config as configuration


def get_config(arguments: str = "") -> ConfigDict:
    """The run's config."""
    args = configuration.parse_arguments(arguments, method="hfgd", tiny=False)
    config = configuration.default()
    configuration.set_method(config, args.method)
    config.model.backbone.name = "resnet18"
    config.model.update({"channels": 64, "context_channels": 256, "wide_channels": 512})
    config.model.batch_norm_decay = 0.95
    config.data.crop = (129, 161)
    config.data.update({"scale_range": (0.75, 1.25), "photometric": "plain"})
    config.optim.update({"learning_rate": 4e-3, "warmup_steps": 30})
    config.train.update({"steps": 300, "batch_size": 8, "dtype": "float32"})
    config.eval.every = 150
    config.checkpoint.every = 100
    if args.tiny:
        configuration.set_tiny(config)
    return config
