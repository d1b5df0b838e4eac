"""The config file that stands for a run already in a workdir: `--config hfgd_jax/saved_config.py:WORKDIR`.

`main` puts it on the command line where `--config` is left out.
"""

from etils import epath
from ml_collections import ConfigDict

from hfgd_jax import config as configuration
from hfgd_jax.errors import UserError


def get_config(workdir: str) -> ConfigDict:
    """The config that the run in `workdir` was started with.

    Raises:
        UserError: no run there, or a config of another version.
    """
    path = epath.Path(workdir) / "config.json"
    if not path.exists():
        raise UserError(f"--workdir={workdir}: holds no run (no config.json); give --config")
    return configuration.from_json(path.read_text())
