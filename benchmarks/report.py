"""The head of every benchmark's result: date, devices, host, versions and config."""

import platform
import time
from typing import Any

import flax
import jax
from absl import flags

from hfgd_jax.runs.system import System


def machine(devices: int) -> dict[str, Any]:
    """Date, devices of a step, host and versions."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "devices": f"{devices} x {jax.devices()[0].device_kind}",
        "host": f"{platform.machine()}, Python {platform.python_version()}",
        "versions": {"jax": jax.__version__, "flax": flax.__version__},
    }


def circumstances(system: System) -> dict[str, Any]:
    """Date, devices, host, versions and the run's shape; for the head of a JSON result."""
    config = system.config
    return {
        **machine(system.mesh.size),
        "config": flags.FLAGS["config"].config_filename,
        "model": config.model.to_dict(),
        "batch": [config.train.batch_size, *config.data.crop],
        "dtype": config.train.dtype,
    }
