"""Rows of the paper's tables, as `TABLE/ROW`.

    python -m hfgd_jax.main --config configs/paper.py:table9/hfgd_os4 --workdir runs/table9_hfgd_os4

Table 9 (Pascal Context, 513x513): GFLOPs and mIoU of the paper are
sa_car_d8 158.96, 50.50; sfpn 45.65, 47.14; hfgd_os4 71.63, 50.76; hfgd_os2 153.62, 51.00.
The other tables are not built. Arguments: the row, tiny.
"""

from ml_collections import ConfigDict

from hfgd_jax import config as configuration
from hfgd_jax.errors import UserError

ROWS = {
    "table9/sa_car_d8": "sa_car_d8",
    "table9/sfpn": "sfpn",
    "table9/hfgd_os4": "hfgd",
    "table9/hfgd_os2": "hfgd_os2",
}


def get_config(arguments: str = "") -> ConfigDict:
    """The run's config: ResNet-50, the plain setting, 30K steps of 16 crops of 513x513."""
    args = configuration.parse_arguments(arguments, row="table9/hfgd_os4", tiny=False)
    if args.row not in ROWS:
        raise UserError(f"configs/paper.py:{args.row}: unknown row; one of {', '.join(ROWS)}")
    config = configuration.default()
    configuration.set_method(config, ROWS[args.row])
    configuration.set_plain(config)
    config.data.update({"dataset": "pascal_context", "num_classes": 59, "crop": (513, 513)})
    if args.tiny:
        configuration.set_tiny(config)
    return config
