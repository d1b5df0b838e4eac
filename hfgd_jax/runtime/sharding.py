"""The device mesh, and how batches and states are split over it.

Two axes: `data`, along which the state is repeated, and `fsdp`, along which it is split. A batch is split
over both. What is computed does not depend on the mesh: XLA gathers a kernel where it is used and adds up
its gradient where it lies; batch statistics, class centres and divisors are those of the global batch.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from hfgd_jax.errors import UserError

AXES = ("data", "fsdp")
Tree = Any  # a pytree of arrays, or of what has their shapes


class Rule(NamedTuple):
    """Leaves whose name matches `pattern` and that have `least` elements or more: split over `fsdp`, or not.

    A split leaf is cut along its largest axis that the size of `fsdp` divides (the last of equals); where
    there is none it stays whole.
    """

    pattern: str
    least: int
    split: bool


# The first rule that fits a leaf decides. A momentum has its parameter's name at its end, and so its place.
RULES = (
    Rule(r"(^|/)depthwise/kernel$", 0, False),  # small; split, XLA would split the features by channel too
    Rule(r"(^|/)kernel$", 2**14, True),  # below, a gather costs more than the memory that it saves
    Rule(r"", 0, False),
)


def mesh_shape(mesh_config: ConfigDict, devices: int) -> tuple[int, int]:
    """Sizes of the axes `data` and `fsdp` on so many devices.

    Raises:
        UserError: they want more devices than there are, or do not divide them.
    """
    sizes = {axis: int(mesh_config[axis]) for axis in AXES}
    for axis, other in (AXES, AXES[::-1]):
        if sizes[axis] == -1:
            if sizes[other] > devices or devices % sizes[other]:
                raise UserError(
                    f"config.mesh.{other}={sizes[other]}: does not divide the {devices} devices that are here"
                )
            sizes[axis] = devices // sizes[other]
    if sizes["data"] * sizes["fsdp"] > devices:
        raise UserError(
            f"config.mesh.data={sizes['data']} with config.mesh.fsdp={sizes['fsdp']}: only {devices} devices "
            "are here; use -1 in one of them for the rest"
        )
    return sizes["data"], sizes["fsdp"]


def make_mesh(mesh_config: ConfigDict) -> Mesh:
    """The mesh over the first `data * fsdp` devices; each process' devices are neighbours in it.

    Raises:
        UserError: see `mesh_shape`; or it leaves out a process.
    """
    devices = jax.devices()
    shape = mesh_shape(mesh_config, len(devices))
    count = shape[0] * shape[1]
    if jax.process_count() > 1 and count != len(devices):
        raise UserError(
            f"config.mesh: {dict(zip(AXES, shape, strict=True))} are {count} devices, but the "
            f"{jax.process_count()} processes have {len(devices)}, and every process must take part"
        )
    # Auto: with explicit axis types convolutions and scatters refuse sharded operands.
    types = (AxisType.Auto,) * len(AXES)
    mesh = jax.make_mesh(shape, AXES, axis_types=types, devices=devices[:count])
    if not _by_process(mesh):
        ordered = sorted(devices[:count], key=lambda device: (device.process_index, device.id))
        mesh = Mesh(np.array(ordered).reshape(shape), AXES, axis_types=types)
    return mesh


def abstract_mesh(mesh_config: ConfigDict, devices: int) -> AbstractMesh:
    """The mesh that `make_mesh` would make of so many devices, which need not be here."""
    shape = mesh_shape(mesh_config, devices)
    return AbstractMesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _owners(mesh: Mesh) -> list[int]:
    """Processes in the order in which the mesh has their devices."""
    return list(dict.fromkeys(device.process_index for device in mesh.devices.flat))


def _by_process(mesh: Mesh) -> bool:
    owners = [device.process_index for device in mesh.devices.flat]
    return owners == sorted(owners, key=_owners(mesh).index)


def process_share(mesh: Mesh) -> tuple[int, int]:
    """Which part of a batch is this process', from 0, and of how many."""
    owners = _owners(mesh)
    return owners.index(jax.process_index()), len(owners)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first axis over the whole mesh."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def rule_of(name: str, shape: tuple[int, ...]) -> Rule:
    """The rule that decides on a leaf."""
    size = int(np.prod(shape))
    return next(rule for rule in RULES if size >= rule.least and re.search(rule.pattern, name))


def spec_of(name: str, shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """How a leaf is split over an axis `fsdp` of that size (see `Rule`)."""
    axes = [i for i, length in enumerate(shape) if length % fsdp == 0 and length >= fsdp]
    if fsdp == 1 or not axes or not rule_of(name, shape).split:
        return PartitionSpec()
    axis = max(axes, key=lambda i: (shape[i], i))
    return PartitionSpec(*[None] * axis, "fsdp")


def leaf_name(path: tuple[Any, ...]) -> str:
    """A leaf's name, such as `params/backbone/conv1/kernel`."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def state_shardings(mesh: Mesh | AbstractMesh, tree: Tree) -> Tree:
    """A NamedSharding for every leaf, by `RULES`."""
    fsdp = mesh.shape["fsdp"]
    return jax.tree_util.tree_map_with_path(
        lambda path, x: NamedSharding(mesh, spec_of(leaf_name(path), x.shape, fsdp)), tree
    )


def placed(shardings: Tree, tree: Tree) -> Tree:
    """`ShapeDtypeStruct`s of a tree's leaves with these shardings."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def rules_table(mesh: Mesh | AbstractMesh, tree: Tree) -> str:
    """What the rules make of a tree, as text: a line a leaf, and their sum.

    Args:
        mesh: it need not be of devices that are here.
        tree: arrays, or what has their shapes and dtypes.
    """
    fsdp, rows, whole, here = mesh.shape["fsdp"], [], 0, 0
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = leaf_name(path)
        spec, size = spec_of(name, leaf.shape, fsdp), int(np.prod(leaf.shape)) * leaf.dtype.itemsize
        share = size // fsdp if any(spec) else size
        whole, here = whole + size, here + share
        cuts = [
            f"{n}/{fsdp}" if axis else str(n)
            for n, axis in zip(leaf.shape, _padded(spec, leaf.shape), strict=True)
        ]
        pattern = rule_of(name, leaf.shape).pattern or "(any)"
        rows.append((name, " x ".join(cuts) or "()", f"{share / 2**20:.3f}", pattern))
    head = ("leaf", "shape, split", "MiB per device", "rule")
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(4)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]
    total = f"{whole / 2**20:.1f} MiB in all, {here / 2**20:.1f} MiB on each of {mesh.size} devices"
    return "\n".join([*lines, f"{total} (mesh {dict(mesh.shape)})"])


def _padded(spec: PartitionSpec, shape: tuple[int, ...]) -> tuple[str | None, ...]:
    return (*spec, *[None] * (len(shape) - len(spec)))


def gathered(mesh: Mesh, tree: Tree) -> Tree:
    """A copy that every device holds whole; for all processes to call."""
    whole = replicated(mesh)
    if all(x.sharding.is_equivalent_to(whole, x.ndim) for x in jax.tree.leaves(tree)):
        return tree
    return jax.jit(lambda t: t, out_shardings=whole)(tree)


def local_copy(mesh: Mesh, tree: Tree) -> Tree:
    """A copy on one of this process' devices, to compute with apart; for all processes to call."""
    return jax.tree.map(lambda x: x.addressable_data(0), gathered(mesh, tree))


def along_batch(mesh: Mesh | AbstractMesh, x: jax.Array) -> jax.Array:
    """Within a compiled function: x, split along its first axis over the whole mesh, and along no other."""
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(AXES)))


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
    sharding, processes = batch_sharding(mesh), len(_owners(mesh))
    return {
        key: jax.make_array_from_process_local_data(
            sharding, value, (value.shape[0] * processes, *value.shape[1:])
        )
        for key, value in local.items()
    }
