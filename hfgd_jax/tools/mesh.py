"""Prints how a state is split over a mesh, leaf by leaf (`runtime/sharding.py`), without its devices.

python -m hfgd_jax.tools.mesh --config configs/paper.py:table10/hfgd_os4 --config.mesh.fsdp=8 --devices 64
"""

import dataclasses
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from hfgd_jax.runs.system import abstract_state, build
from hfgd_jax.runtime import sharding, shell


def table(config: ConfigDict, devices: int) -> str:
    """The rules' table of a run's parameters, statistics and optimizer state.

    Args:
        config: of the run; `config.mesh` is laid on the devices.
        devices: how many there are to be.

    Raises:
        UserError: the config is not valid, or its mesh does not fit the devices.
    """
    mesh = sharding.abstract_mesh(config.mesh, devices)
    here = config.copy_and_resolve_references()
    here.mesh.update({"data": 1, "fsdp": 1, "constrain_decoder": False})
    state = abstract_state(dataclasses.replace(build(here), mesh=mesh))
    return sharding.rules_table(mesh, {**state.model, **state.training})


def define_flags() -> None:
    """The command's flags."""
    config_flags.DEFINE_config_file("config", None, "Config file, with arguments after a colon.")
    flags.DEFINE_integer("devices", 8, "Devices of all hosts.", lower_bound=1)
    flags.mark_flag_as_required("config")


def main(_: Sequence[str]) -> int:
    """Prints the table; returns the exit code."""
    print(table(flags.FLAGS.config, flags.FLAGS.devices))
    return 0


if __name__ == "__main__":
    define_flags()
    shell.run(main)
