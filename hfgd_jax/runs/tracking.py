"""Weights & Biases: the curves and pictures that TensorBoard has, in a project there (`--wandb=PROJECT`)."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8
from ml_collections import ConfigDict

from hfgd_jax.config import fields
from hfgd_jax.errors import UserError, require
from hfgd_jax.runtime import storage


class Tracker:
    """A run there for a run directory here, begun with the first value; a run that goes on goes on there.

    Login, server and `WANDB_MODE=offline` are as wandb itself reads them from the environment.

    Args:
        project: its name there.
        workdir: the run directory; its name is the run's, its path tells it from others.
        config: every field is shown there.

    Raises:
        UserError: wandb is not installed.
    """

    def __init__(self, project: str, workdir: epath.PathLike, config: ConfigDict):
        require(f"--wandb={project}", "hfgd_jax[wandb]", "wandb")
        self._project, self._config = project, fields.flat(config)
        self._folder, self._run = storage.resolve(workdir, "--workdir"), None

    def values(self, step: int, values: Mapping[str, float]) -> None:
        """Points of curves at a step."""
        self._started().log({"step": step, **values})

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """A picture at a step."""
        import wandb

        self._started().log({"step": step, name: wandb.Image(image)})

    def close(self) -> None:
        """Sends what is left and ends the run there."""
        if self._run is not None:
            self._run.finish()

    def _started(self) -> Any:
        if self._run is None:
            import wandb

            path = storage.real(self._folder)
            try:
                self._run = wandb.init(
                    project=self._project,
                    name=self._folder.name,
                    id=hashlib.sha256(path.encode()).hexdigest()[:16],
                    resume="allow",
                    dir=None if storage.is_remote(self._folder) else path,
                    config=self._config,
                    settings=wandb.Settings(silent=True, console="off"),
                )
            except wandb.Error as error:
                raise UserError(
                    f"--wandb={self._project}: {error}; `wandb login` first, or set WANDB_MODE=offline"
                ) from error
            # Steps that a killed run had reached come again: they are a value, not wandb's own count.
            self._run.define_metric("*", step_metric="step")
        return self._run
