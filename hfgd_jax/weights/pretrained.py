"""Weights of other projects in and out: match names, convert layouts, report.

The tables of names are in `weights/names/`, the layouts in `weights/layouts.py`.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from hfgd_jax.errors import UserError
from hfgd_jax.models.backbones import BACKBONES
from hfgd_jax.weights import files
from hfgd_jax.weights.files import first_names
from hfgd_jax.weights.layouts import file_shape, from_file, resizable, resize_position_bias, to_file
from hfgd_jax.weights.names import namings
from hfgd_jax.weights.names.base import Naming, WeightTarget

LeafKeys = tuple[str, ...]  # the keys of a leaf, its collection first

WRAPPERS = ("module.", "_orig_mod.", "model.", "state_dict.")  # what training scripts put before every name
OUTER = ("", "backbone.")  # of a network within segmentation models, tried after its naming's prefixes
HEADS = ("decode_head.", "auxiliary_head.", "classifier.", "aux_classifier.")  # their other parts
FLOATS = ("float32", "float16", "bfloat16", "float64")


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of loading a file, tensor by tensor.

    Attributes:
        path: the file or folder.
        naming: the project whose names the file has.
        loaded: names of the file's tensors that are now in the model.
        missing: tensors that the model needs and the file lacks; always empty, as they are an error.
        surplus: tensors of the file that are left out by design (its classifier, batch counters).
        reinitialised: paths of the model's parameters and statistics that the file has no tensor for; they
            keep the values that they had.
        notes: changes to the tensors (types cast, tables resized), a line each.
        leaves: the path of the leaf that each loaded tensor went to.
    """

    path: str
    naming: str
    loaded: list[str]
    missing: list[str]
    surplus: list[str]
    reinitialised: list[str]
    notes: list[str]
    leaves: dict[str, str] = dataclasses.field(default_factory=dict)

    def summary(self) -> str:
        """One line for the start of a run."""
        notes = "".join(f"; {note}" for note in self.notes)
        return (
            f"{self.path}: {len(self.loaded)} tensors loaded in {owner(self.naming)} naming, "
            f"{len(self.missing)} missing, {len(self.surplus)} left out, "
            f"{len(self.reinitialised)} elsewhere start from random weights{notes}"
        )

    def details(self) -> str:
        """A line for every name, then the notes and the counts."""
        lines = [f"loaded          {name} -> {self.leaves[name]}" for name in self.loaded]
        lines += [f"missing         {name}" for name in self.missing]
        lines += [f"left out        {name}" for name in self.surplus]
        lines += [f"re-initialised  {name}" for name in self.reinitialised]
        lines += [f"note            {note}" for note in self.notes]
        return "\n".join([*lines, self.summary()])


def load_backbone(
    variables: dict[str, Any], backbone_name: str, path: str | Path
) -> tuple[dict[str, Any], Report]:
    """Replaces the backbone's variables by the tensors of a weight file, as float32.

    The naming that the file follows, of the backbone's, and the prefix of its names are detected. Swin's
    tables of position biases are resized where the file's window differs.

    Args:
        variables: of a `Segmenter`: `params` and `batch_stats`, each with a group `backbone`. Left as it is.
        backbone_name: a key of `BACKBONES`.
        path: see `weights.files.read`.

    Returns:
        New variables, whose leaves have the device and sharding of the old ones, and what was loaded.

    Raises:
        UserError: no such file, a file that cannot be read, or one with missing, surplus or mis-shaped
            tensors, which are listed; where it looks like another backbone's, that is named.
    """
    source = _unwrapped(files.read(path))
    naming, prefix = _best_naming(namings(backbone_name), source)
    naming = _of_model(naming, variables, "backbone")
    targets = naming.targets
    hits = sum(prefix + name in source for name in targets)
    problems = _problems(variables, naming, prefix, source, "backbone", resize=True)
    if problems:
        other = identify(source)
        if other and other[0] != backbone_name:
            raise UserError(
                f"weights {path}: not those of {backbone_name}; looks like "
                f"{other[0]} in {owner(other[1])} naming; "
                f"set config.model.backbone.name='{other[0]}', or .weights to another file"
            )
        if hits < len(targets) / 4:
            raise UserError(
                f"weights {path}: not those of {backbone_name}, nor of another backbone here ({hits} of "
                f"{len(targets)} names fit; its first ones: {', '.join(sorted(source)[:3])}); "
                "set config.model.backbone.weights to another file"
            )
        raise UserError(
            f"weights {path}: not those of {backbone_name} in {owner(naming.name)} naming ({problems}); "
            f"set config.model.backbone.name to the file's network, or .weights to another file"
        )
    return fill(variables, naming, source, path, prefix=prefix, root="backbone")


def find_naming(backbone_name: str, naming: str = "") -> Naming:
    """A backbone's naming by the project's name, the first where that is empty.

    Raises:
        UserError: there is no such naming; those that there are, are listed.
    """
    known = {entry.name: entry for entry in namings(backbone_name)}
    if naming and naming not in known:
        raise UserError(f"naming {naming!r}: {backbone_name} has none; one of {', '.join(known)}")
    return known[naming] if naming else next(iter(known.values()))


def export(variables: Mapping[str, Any], naming: Naming, *, root: str = "") -> dict[str, np.ndarray]:
    """The tensors that `naming` has names for, in its layouts and with its first prefix.

    Leaves that the model is built without (an EfficientNet's last convolution) are not among them.

    Args:
        variables: `params` and `batch_stats`.
        root: the group in each collection that the naming's paths lie in; empty for the whole.
    """
    flat = traverse_util.flatten_dict(dict(variables))
    prefix = naming.prefixes[0]
    return {
        prefix + name: to_file(target, np.asarray(flat[_leaf_keys(target, root)], np.float32))
        for name, target in _of_model(naming, variables, root).targets.items()
    }


def leaf_path(naming: Naming, name: str, *, root: str = "") -> str:
    """The path of the leaf that an exported tensor belongs to."""
    return "/".join(_leaf_keys(naming.targets[name.removeprefix(naming.prefixes[0])], root))


def unnamed(variables: Mapping[str, Any], naming: Naming, *, root: str = "") -> list[str]:
    """Leaves within `root` that `naming` has no name for, by their paths."""
    named = {_leaf_keys(target, root) for target in naming.targets.values()}
    flat = traverse_util.flatten_dict(dict(variables))
    return sorted("/".join(key) for key in flat if (not root or key[1] == root) and key not in named)


def fill(
    variables: Mapping[str, Any],
    naming: Naming,
    source: Mapping[str, np.ndarray],
    path: str | Path,
    *,
    prefix: str = "",
    root: str = "",
) -> tuple[dict[str, Any], Report]:
    """Replaces leaves by the tensors of `source`, which must have passed `check` or `load_backbone`'s checks.

    Args:
        variables: left as they are.
        naming: the tensors' names without `prefix`, and their leaves within `root`.
        source: the tensors.
        path: their file, for the report.
        prefix: what the file puts before all names of the naming.
        root: the group in each collection that the naming's paths start in; empty for the whole.

    Returns:
        New variables, whose leaves have the device and sharding of the old ones, and what was loaded.
    """
    flat = traverse_util.flatten_dict(dict(variables))
    filled: dict[LeafKeys, np.ndarray] = {}
    leaves, notes, resized = {}, Counter(), []
    for name, target in naming.targets.items():
        value = source.get(prefix + name)
        if value is None:
            continue
        leaf = _leaf_keys(target, root)
        shape = flat[leaf].shape
        if value.dtype != np.float32:
            notes[f"cast from {value.dtype.name} to float32"] += 1
        value = np.asarray(value, np.float32)
        if value.shape != file_shape(target, shape):
            value = resize_position_bias(value, shape[0])
            resized.append(prefix + name)
        index, parts = target.part
        width = shape[-1] // parts
        whole = filled.setdefault(leaf, np.empty(shape, np.float32))
        whole[..., index * width : (index + 1) * width] = from_file(target, value, (*shape[:-1], width))
        leaves[prefix + name] = "/".join(leaf)
    for leaf, value in filled.items():
        flat[leaf] = _with_sharding_of(flat[leaf], value)
    lines = [f"{count} {_tensors(count)} {note}" for note, count in sorted(notes.items())]
    if resized:
        lines.append(f"{len(resized)} {_tensors(len(resized))} of position biases resized to the window here")
    left_out = sorted(name for name in source if name not in leaves)
    if root and any(name.startswith(HEADS[:2]) for name in left_out):
        lines.append("the file is a whole segmentation model, whose heads are left out")
    absent = naming.optional - {name.removeprefix(prefix) for name in leaves}
    if absent:
        lines.append(f"the file has none of the {len(absent)} optional tensors; they start afresh")
    report = Report(
        path=str(path),
        naming=naming.name,
        loaded=sorted(leaves),
        missing=[],
        surplus=left_out,
        reinitialised=["/".join(key) for key in sorted(flat) if key not in filled],
        notes=lines,
        leaves=leaves,
    )
    return traverse_util.unflatten_dict(flat), report


@functools.cache
def backbone_shapes(name: str) -> dict[str, Any]:
    """Shapes of a backbone's variables, `{collection: {"backbone": tree}}`; nothing is computed.

    They include the last convolution of an EfficientNet, which its expanded levels need.
    """
    backbone = BACKBONES[name].build(expanded_levels=True)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: backbone.init(jax.random.key(0), x, train=False), images)
    return {collection: {"backbone": tree} for collection, tree in shapes.items()}


def identify(source: Mapping[str, np.ndarray]) -> tuple[str, str] | None:
    """The backbone and the naming whose names and shapes the tensors all have, or None."""
    for name in BACKBONES:
        naming, prefix = _best_naming(namings(name), source)
        wanted = {prefix + key for key in naming.targets.keys() - naming.optional}
        if wanted <= source.keys() and not _problems(
            backbone_shapes(name), naming, prefix, source, "backbone", resize=True
        ):
            return name, naming.name
    return None


def check(
    variables: Mapping[str, Any], naming: Naming, source: Mapping[str, np.ndarray], path: str | Path
) -> None:
    """Refuses tensors that are not exactly those that `naming` lists for a whole model.

    Raises:
        UserError: missing, surplus or mis-shaped tensors, which are listed.
    """
    problems = _problems(variables, naming, "", source, "", resize=False)
    if problems:
        raise UserError(
            f"weights {path}: not the tensors of the model that its config describes ({problems})"
        )


def _unwrapped(source: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Removes the wrappers' prefixes that all names share."""
    for wrapper in WRAPPERS * 2:
        if source and all(name.startswith(wrapper) for name in source):
            source = {name.removeprefix(wrapper): value for name, value in source.items()}
    return source


def _best_naming(known: Sequence[Naming], source: Mapping[str, np.ndarray]) -> tuple[Naming, str]:
    """The naming and prefix with most names in the file; the first of equals."""
    choices = [(naming, prefix) for naming in known for prefix in dict.fromkeys((*naming.prefixes, *OUTER))]
    return max(choices, key=lambda choice: sum(choice[1] + name in source for name in choice[0].targets))


def _of_model(naming: Naming, variables: Mapping[str, Any], root: str) -> Naming:
    """A backbone's naming without targets that the model lacks; their tensors are left out by design."""
    flat = traverse_util.flatten_dict(dict(variables))
    targets = {name: target for name, target in naming.targets.items() if _leaf_keys(target, root) in flat}
    absent = naming.targets.keys() - targets.keys()
    return naming._replace(targets=targets, left_out=lambda name: name in absent or naming.left_out(name))


def _problems(
    variables: Mapping[str, Any],
    naming: Naming,
    prefix: str,
    source: Mapping[str, np.ndarray],
    root: str,
    *,
    resize: bool,
) -> str:
    """The differences between the tensors and the naming, as the text of an error; empty without any."""
    flat = traverse_util.flatten_dict(dict(variables))
    absent = {name for name in naming.targets if prefix + name not in source}
    if absent >= naming.optional:
        absent -= naming.optional
    surplus = [
        name
        for name in source
        if (not name.startswith(prefix) or name.removeprefix(prefix) not in naming.targets)
        and not _left_out(naming, prefix, name)
    ]
    misshaped, no_floats, not_finite = [], [], []
    for name, target in naming.targets.items():
        value = source.get(prefix + name)
        if value is None:
            continue
        wanted = file_shape(target, flat[_leaf_keys(target, root)].shape)
        if value.shape != wanted and not (resize and resizable(target, value.shape, wanted)):
            misshaped.append(f"{prefix}{name} {value.shape} (want {wanted})")
        if value.dtype.name not in FLOATS:
            no_floats.append(f"{prefix}{name} ({value.dtype.name})")
        elif not np.isfinite(value).all():
            not_finite.append(prefix + name)
    kinds = {
        "missing": [prefix + name for name in sorted(absent)],
        "surplus": sorted(surplus),
        "of another shape": misshaped,
        "that are no floats": no_floats,
        "with infinities or NaNs": not_finite,
    }
    return "; ".join(f"{len(names)} {kind}: {first_names(names)}" for kind, names in kinds.items() if names)


def _left_out(naming: Naming, prefix: str, name: str) -> bool:
    """By design: what the naming leaves out, and the heads of a segmentation model around a backbone."""
    inner = name.removeprefix(prefix)
    if naming.left_out(inner) or naming.left_out(name):
        return True
    return not name.startswith(prefix) and name.startswith(HEADS)


def _leaf_keys(target: WeightTarget, root: str) -> LeafKeys:
    return (target.collection, *((root,) if root else ()), *target.path)


def _with_sharding_of(old: Any, value: np.ndarray) -> Any:
    return jax.device_put(value, old.sharding) if isinstance(old, jax.Array) else value


def owner(naming: str) -> str:
    """The genitive of a project's name: `timm's`, `transformers'`."""
    return f"{naming}'" if naming.endswith("s") else f"{naming}'s"


def _tensors(count: int) -> str:
    return "tensor" if count == 1 else "tensors"
