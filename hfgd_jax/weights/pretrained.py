"""Weights of other projects in and out: match names, convert layouts, report (spec 1.6)."""

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
from hfgd_jax.models.backbones.base import Naming
from hfgd_jax.weights import files
from hfgd_jax.weights.files import some
from hfgd_jax.weights.layouts import file_shape, from_file, resizable, resize_position_bias, to_file

Place = tuple[str, ...]  # the keys of a leaf, its collection first

WRAPPERS = ("module.", "_orig_mod.", "model.", "state_dict.")  # what trainers put before every name
OUTER = ("", "backbone.")  # where segmentation models keep a network, beside its naming's own prefixes
HEADS = ("decode_head.", "auxiliary_head.", "classifier.", "aux_classifier.")  # what stands beside it there
FLOATS = ("float32", "float16", "bfloat16", "float64")


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of the names.

    Attributes:
        path: the file or folder.
        naming: the project whose names the file has.
        loaded: tensors of the file that are now in the model, by their names there.
        missing: tensors that the model wants and the file lacks; empty, as they are an error.
        surplus: tensors of the file that are left out by design (its classifier, batch counters).
        reinitialised: parameters and statistics of the model that the file has nothing for, by their paths;
            they keep the values that they had.
        notes: what was done to the tensors besides (types cast, tables resized), a line each.
        places: where each loaded tensor went.
    """

    path: str
    naming: str
    loaded: list[str]
    missing: list[str]
    surplus: list[str]
    reinitialised: list[str]
    notes: list[str]
    places: dict[str, str] = dataclasses.field(default_factory=dict)

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
        lines = [f"loaded          {name} -> {self.places[name]}" for name in self.loaded]
        lines += [f"missing         {name}" for name in self.missing]
        lines += [f"left out        {name}" for name in self.surplus]
        lines += [f"re-initialised  {name}" for name in self.reinitialised]
        lines += [f"note            {note}" for note in self.notes]
        return "\n".join([*lines, self.summary()])


def load_backbone(
    variables: dict[str, Any], backbone_name: str, path: str | Path
) -> tuple[dict[str, Any], Report]:
    """Puts a weight file's tensors in the place of the backbone's, as float32.

    Which of the backbone's namings the file follows, and what stands before its names, is found out. Swin's
    tables of position biases are resized where the file's window differs.

    Args:
        variables: of a `Segmenter`: `params` and `batch_stats`, each with a group `backbone`. Left as it is.
        backbone_name: a key of `BACKBONES`.
        path: see `weight_files.read`.

    Returns:
        New variables, whose leaves lie where the old ones lay (device and sharding), and what was loaded.

    Raises:
        UserError: no such file, a file that cannot be read, or one with missing, surplus or mis-shaped
            tensors, which are listed; where it looks like another backbone's, that is named.
    """
    source = _unwrapped(files.read(path))
    naming, prefix = _best_naming(BACKBONES[backbone_name].namings(), source)
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


def export_backbone(
    variables: Mapping[str, Any], backbone_name: str, naming: str = ""
) -> dict[str, np.ndarray]:
    """The backbone's tensors as another project names and lays them out, float32.

    Args:
        variables: of a `Segmenter`, with a group `backbone` in each collection.
        backbone_name: a key of `BACKBONES`.
        naming: the project; empty for the backbone's first.

    Raises:
        UserError: the backbone has no such naming.
    """
    return export(variables, find_naming(backbone_name, naming), root="backbone")


def find_naming(backbone_name: str, naming: str = "") -> Naming:
    """A backbone's naming by the project's name, the first where that is empty.

    Raises:
        UserError: there is no such naming; those that there are, are listed.
    """
    namings = {entry.name: entry for entry in BACKBONES[backbone_name].namings()}
    if naming and naming not in namings:
        raise UserError(f"naming {naming!r}: {backbone_name} has none; one of {', '.join(namings)}")
    return namings[naming] if naming else next(iter(namings.values()))


def export(variables: Mapping[str, Any], naming: Naming, *, root: str = "") -> dict[str, np.ndarray]:
    """The tensors that `naming` has names for, in its layouts and with its first prefix.

    What the variables' model does without (an EfficientNet's last convolution) is not among them.

    Args:
        variables: `params` and `batch_stats`.
        root: the group in each collection that the naming's paths lie in; empty for the whole.
    """
    flat = traverse_util.flatten_dict(dict(variables))
    prefix = naming.prefixes[0]
    return {
        prefix + name: to_file(target, np.asarray(flat[_place(target, root)], np.float32))
        for name, target in _of_model(naming, variables, root).targets.items()
    }


def place_of(naming: Naming, name: str, *, root: str = "") -> str:
    """The path of the leaf that an exported tensor is of."""
    return "/".join(_place(naming.targets[name.removeprefix(naming.prefixes[0])], root))


def unnamed(variables: Mapping[str, Any], naming: Naming, *, root: str = "") -> list[str]:
    """Leaves within `root` that `naming` has no name for, by their paths."""
    named = {_place(target, root) for target in naming.targets.values()}
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
    """Puts the tensors of `source` into their places; `_problems` has found nothing wrong with them.

    Args:
        variables: left as they are.
        naming: the tensors' names without `prefix`, and their places within `root`.
        source: the tensors.
        path: their file, for the report.
    """
    flat = traverse_util.flatten_dict(dict(variables))
    filled: dict[Place, np.ndarray] = {}
    places, notes, resized = {}, Counter(), []
    for name, target in naming.targets.items():
        value = source.get(prefix + name)
        if value is None:
            continue
        place = _place(target, root)
        shape = flat[place].shape
        if value.dtype != np.float32:
            notes[f"cast from {value.dtype.name} to float32"] += 1
        value = np.asarray(value, np.float32)
        if value.shape != file_shape(target, shape):
            value = resize_position_bias(value, shape[0])
            resized.append(prefix + name)
        index, parts = target.part
        width = shape[-1] // parts
        whole = filled.setdefault(place, np.empty(shape, np.float32))
        whole[..., index * width : (index + 1) * width] = from_file(target, value, (*shape[:-1], width))
        places[prefix + name] = "/".join(place)
    for place, value in filled.items():
        flat[place] = _like(flat[place], value)
    lines = [f"{count} {_tensors(count)} {note}" for note, count in sorted(notes.items())]
    if resized:
        lines.append(f"{len(resized)} {_tensors(len(resized))} of position biases resized to the window here")
    left_out = sorted(name for name in source if name not in places)
    if root and any(name.startswith(HEADS[:2]) for name in left_out):
        lines.append("the file is a whole segmentation model, whose heads are left out")
    absent = naming.optional - {name.removeprefix(prefix) for name in places}
    if absent:
        lines.append(f"the file has none of the {len(absent)} optional tensors; they start afresh")
    report = Report(
        path=str(path),
        naming=naming.name,
        loaded=sorted(places),
        missing=[],
        surplus=left_out,
        reinitialised=["/".join(key) for key in sorted(flat) if key not in filled],
        notes=lines,
        places=places,
    )
    return traverse_util.unflatten_dict(flat), report


@functools.cache
def backbone_shapes(name: str) -> dict[str, Any]:
    """Shapes of a backbone's variables, `{collection: {"backbone": tree}}`; nothing is computed.

    With the last convolution of an EfficientNet, which its expanded levels need.
    """
    backbone = BACKBONES[name].build(expanded_levels=True)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: backbone.init(jax.random.key(0), x, train=False), images)
    return {collection: {"backbone": tree} for collection, tree in shapes.items()}


def identify(source: Mapping[str, np.ndarray]) -> tuple[str, str] | None:
    """The backbone and the naming that tensors fit in every name and shape, or None."""
    for name, backbone in BACKBONES.items():
        naming, prefix = _best_naming(backbone.namings(), source)
        wanted = {prefix + key for key in naming.targets.keys() - naming.optional}
        if wanted <= source.keys() and not _problems(
            backbone_shapes(name), naming, prefix, source, "backbone", resize=True
        ):
            return name, naming.name
    return None


def check(
    variables: Mapping[str, Any], naming: Naming, source: Mapping[str, np.ndarray], path: str | Path
) -> None:
    """Refuses tensors that do not fill all of `naming`'s places in a whole model.

    Raises:
        UserError: missing, surplus or mis-shaped tensors, which are listed.
    """
    problems = _problems(variables, naming, "", source, "", resize=False)
    if problems:
        raise UserError(
            f"weights {path}: not the tensors of the model that its config describes ({problems})"
        )


def _unwrapped(source: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without the wrappers' prefixes that all names share."""
    for wrapper in WRAPPERS * 2:
        if source and all(name.startswith(wrapper) for name in source):
            source = {name.removeprefix(wrapper): value for name, value in source.items()}
    return source


def _best_naming(namings: Sequence[Naming], source: Mapping[str, np.ndarray]) -> tuple[Naming, str]:
    """The naming and prefix with most names in the file; the first of equals."""
    choices = [(naming, prefix) for naming in namings for prefix in dict.fromkeys((*naming.prefixes, *OUTER))]
    return max(choices, key=lambda choice: sum(choice[1] + name in source for name in choice[0].targets))


def _of_model(naming: Naming, variables: Mapping[str, Any], root: str) -> Naming:
    """A backbone's naming without the parts that its config does without; these are left out by design."""
    flat = traverse_util.flatten_dict(dict(variables))
    targets = {name: target for name, target in naming.targets.items() if _place(target, root) in flat}
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
    """What is wrong with the tensors, in words; empty where nothing is."""
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
        wanted = file_shape(target, flat[_place(target, root)].shape)
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
    return "; ".join(f"{len(names)} {kind}: {some(names)}" for kind, names in kinds.items() if names)


def _left_out(naming: Naming, prefix: str, name: str) -> bool:
    """By design: what the naming says, and what stands beside a network within a segmentation model."""
    inner = name.removeprefix(prefix)
    if naming.left_out(inner) or naming.left_out(name):
        return True
    return not name.startswith(prefix) and name.startswith(HEADS)


def _place(target: Any, root: str) -> Place:
    return (target.collection, *((root,) if root else ()), *target.path)


def _like(old: Any, value: np.ndarray) -> Any:
    return jax.device_put(value, old.sharding) if isinstance(old, jax.Array) else value


def owner(naming: str) -> str:
    """`timm's`, `transformers'`."""
    return f"{naming}'" if naming.endswith("s") else f"{naming}'s"


def _tensors(count: int) -> str:
    return "tensor" if count == 1 else "tensors"
