"""The config file that stands for a run: `--config hfgd_jax/runs/saved_config.py:WORKDIR`.

`main` puts it on the command line where `--config` is left out.
"""

from ml_collections import ConfigDict

from hfgd_jax.errors import UserError
from hfgd_jax.runs.workdir import read_config
from hfgd_jax.runtime import storage


def get_config(workdir: str) -> ConfigDict:
    """The config that the run in `workdir` was started with.

    Raises:
        UserError: no run there, or a config with fields that this version does not know.
    """
    config = read_config(storage.resolve(workdir, "--workdir", arrays=True))
    if config is None:
        raise UserError(f"--workdir={workdir}: holds no run (no config.json); give --config")
    return config
