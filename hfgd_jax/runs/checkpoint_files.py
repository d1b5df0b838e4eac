"""One checkpoint as it lies in its folder: sealed when it is written, checked whenever it is read.

`meta` lists each array's shape, type and checksum, and carries a digest of itself. Reading needs no
barrier: each process reads what its devices hold, then all exchange whether it worked, so that one that
cannot read never leaves the others waiting.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import SingleDeviceSharding

from hfgd_jax.errors import UserError
from hfgd_jax.runs.checksums import checksums
from hfgd_jax.runtime import collectives, sharding

Tree = Any  # a pytree of arrays
_CHECKSUM = "fingerprint"  # what a checksum is called in `meta`, since the first version
_SHOWN = 8  # leaves that a message names


class DamagedError(UserError):
    """A checkpoint that cannot be read, or is not what was saved."""


def seal(meta: Mapping[str, Any], items: Mapping[str, Tree]) -> dict[str, Any]:
    """`meta` with the list of the items' arrays and a digest. For all processes to call.

    Args:
        meta: what JSON can hold.
        items: trees of arrays by the item's name.
    """
    arrays = {}
    for item, tree in items.items():
        sums = checksums(tree)
        for name, (shape, dtype) in _kinds(tree).items():
            arrays[f"{item}/{name}"] = {"shape": shape, "dtype": dtype, _CHECKSUM: sums[name]}
    plain = json.loads(json.dumps({**meta, "arrays": arrays}))
    return plain | {"digest": _digest(plain)}


def read_meta(folder: epath.Path) -> dict[str, Any]:
    """The sealed `meta` of the checkpoint in `folder`.

    Raises:
        DamagedError: there is none, it cannot be read, or it has been changed.
    """
    try:
        # Not through orbax, which starts JAX: the config in here may be what JAX is started with.
        meta = json.loads((folder / "meta" / "metadata").read_text())
        digest, arrays = meta.pop("digest"), meta["arrays"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"checkpoint {folder} is damaged: meta: {_brief(error)}") from error
    if digest != _digest(meta) or not isinstance(arrays, dict):
        raise DamagedError(f"checkpoint {folder} is damaged: meta: it has been changed since it was saved")
    return meta


def read(folder: epath.Path, wanted: Mapping[str, Tree]) -> dict[str, Tree]:
    """Items of the checkpoint in `folder`, bit by bit what was saved. For all processes to call.

    Args:
        folder: of the step.
        wanted: by the item's name, a tree of `jax.ShapeDtypeStruct` with shardings to restore to (None: the
            first device of this process).

    Raises:
        DamagedError: on every process, where one of them cannot read it, or a leaf is not what was saved.
        UserError: it is of another model; the differing leaves are named.
    """
    meta, items, problem = {}, {}, None
    try:
        meta = read_meta(folder)
        _compare(folder, meta["arrays"], wanted)
        items = {name: _restore(folder, name, tree) for name, tree in wanted.items()}
    except UserError as error:
        problem = error
    _raise_on_all(folder, problem)
    wrong = [
        f"{item}/{name}"
        for item, tree in items.items()
        for name, found in checksums(tree).items()
        if found != meta["arrays"][f"{item}/{name}"][_CHECKSUM]
    ]
    if wrong:
        problem = DamagedError(
            f"checkpoint {folder} is damaged: not what was saved (checksums differ): {_listed(wrong)}"
        )
    _raise_on_all(folder, problem)
    return items


def _restore(folder: epath.Path, item: str, tree: Tree) -> Tree:
    # What has no place goes to this process's first device: where it was saved from need not be here.
    first = SingleDeviceSharding(jax.local_devices()[0])
    placed = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or first), tree
    )
    handler = ocp.StandardCheckpointHandler()
    try:
        return handler.restore(folder / item, args=ocp.args.StandardRestore(placed))
    except (jax.errors.JaxRuntimeError, MemoryError):  # out of memory: nothing is wrong with the files
        raise
    except Exception as error:  # tensorstore and orbax raise many kinds
        raise DamagedError(f"checkpoint {folder} is damaged: {item}: {_brief(error)}") from error
    finally:
        handler.close()


def _compare(folder: epath.Path, saved: Mapping[str, Any], wanted: Mapping[str, Tree]) -> None:
    """Raises UserError where the arrays that were saved are not those of the wanted trees."""
    wrong = []
    for item, tree in wanted.items():
        have = {
            name.removeprefix(f"{item}/"): (tuple(array["shape"]), array["dtype"])
            for name, array in saved.items()
            if name.startswith(f"{item}/")
        }
        want = _kinds(tree)
        for name in sorted(have | want, reverse=True):
            (a, one), (b, other) = have.get(name, (None, "")), want.get(name, (None, ""))
            if a != b:
                wrong.append(f"{name}: saved {a}, wanted {b}")
            elif one != other:
                wrong.append(f"{name}: saved {one}, wanted {other}")
    if wrong:
        raise UserError(
            f"checkpoint {folder}: of another model; these leaves differ: {_listed(wrong, '; ')}. "
            "Use the config it was trained with"
        )


def _raise_on_all(folder: epath.Path, problem: UserError | None) -> None:
    """Raises the same kind of error on every process where one of them has a problem."""
    kind = 0 if problem is None else 1 if isinstance(problem, DamagedError) else 2
    kinds = collectives.all_gather(kind)
    worst = max(kinds)
    if problem is not None and kind == worst:
        raise problem
    if worst:
        what = "cannot read it" if worst == 1 else "wants another model"
        kind_of_all = DamagedError if worst == 1 else UserError
        raise kind_of_all(f"checkpoint {folder}: process {kinds.index(worst)} {what}")


def _kinds(tree: Tree) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of each leaf by its name."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {sharding.leaf_name(path): (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in leaves}


def _digest(meta: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _listed(names: list[str], joint: str = ", ") -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return joint.join(names[:_SHOWN]) + more


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
