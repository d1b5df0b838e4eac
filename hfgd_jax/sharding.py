"""The device mesh, and how batches and states lie on it."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from hfgd_jax.errors import UserError


def make_mesh(mesh_config: ConfigDict) -> Mesh:
    """A mesh with the one axis `data` over the first `mesh.data` devices (-1: all of them).

    Raises:
        UserError: more devices are asked for than there are.
    """
    devices = jax.devices()
    wanted = len(devices) if mesh_config.data == -1 else mesh_config.data
    if wanted > len(devices):
        raise UserError(f"config.mesh.data={wanted}: only {len(devices)} devices are here; use -1 for all")
    # Auto: with explicit axis types convolutions and scatters refuse sharded operands.
    return jax.make_mesh((wanted,), ("data",), axis_types=(AxisType.Auto,), devices=devices[:wanted])


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of a state that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first axis over the mesh."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(name: str, batch_size: int, mesh: Mesh) -> None:
    """Raises UserError where `batch_size` (the field `name`) does not divide evenly over the devices."""
    devices = mesh.size
    if batch_size % devices:
        below, above = batch_size // devices * devices, -(-batch_size // devices) * devices
        raise UserError(
            f"{name}={batch_size}: must be a multiple of the {devices} devices of the mesh; "
            f"use {above}{f' or {below}' if below else ''}, or fewer devices (config.mesh.data)"
        )


def round_up_batch_size(batch_size: int, mesh: Mesh) -> int:
    """The smallest multiple of the device count that is not below `batch_size`."""
    return -(-batch_size // mesh.size) * mesh.size


def global_batch(mesh: Mesh, local: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Puts this process's rows `[b, ...]` of each array on its devices, as part of one global array."""
    sharding, processes = batch_sharding(mesh), jax.process_count()
    return {
        key: jax.make_array_from_process_local_data(
            sharding, value, (value.shape[0] * processes, *value.shape[1:])
        )
        for key, value in local.items()
    }
