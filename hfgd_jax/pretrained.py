"""Backbone weights from files: read, match by name, report (spec 1.6)."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.numpy import load_file

from hfgd_jax.errors import UserError
from hfgd_jax.models.backbones import BACKBONES


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of the names.

    Attributes:
        path: the file.
        loaded: tensors of the file that are now in the backbone, by their names there.
        missing: tensors that the backbone wants and the file lacks; empty, as they are an error.
        surplus: tensors of the file that are left out by design (its classifier, batch counters).
        reinitialised: parameters and statistics of the model that the file has nothing for: all that is not
            the backbone, by their paths.
    """

    path: str
    loaded: list[str]
    missing: list[str]
    surplus: list[str]
    reinitialised: list[str]

    def summary(self) -> str:
        """One line for the start of a run."""
        return (
            f"{self.path}: {len(self.loaded)} tensors loaded into the backbone, {len(self.missing)} missing, "
            f"{len(self.surplus)} left out, {len(self.reinitialised)} elsewhere start from random weights"
        )


def load_backbone(
    variables: dict[str, Any], backbone_name: str, path: str | Path
) -> tuple[dict[str, Any], Report]:
    """Puts a weight file's tensors in the place of the backbone's, as float32.

    Args:
        variables: of a `Segmenter`: `params` and `batch_stats`, each with a group `backbone`. Left as it is.
        backbone_name: a key of `BACKBONES`, whose naming the file follows.
        path: a `.safetensors` file, or `.pth` or `.pt` where torch is installed.

    Returns:
        New variables, whose leaves lie where the old ones lay (device and sharding), and what was loaded.

    Raises:
        UserError: no such file, a file that cannot be read, or one with missing, surplus or mis-shaped
            tensors, which are listed.
    """
    backbone = BACKBONES[backbone_name]
    source = _read(Path(path))
    naming = backbone.namings()[0]
    left_out = sorted(name for name in source if naming.left_out(name))
    targets = naming.targets
    flat = traverse_util.flatten_dict(variables)
    places = {name: (t.collection, "backbone", *t.path) for name, t in targets.items()}
    wanted = {name: _source_shape(place, flat[place].shape) for name, place in places.items()}

    missing = sorted(wanted.keys() - source.keys())
    surplus = sorted(source.keys() - wanted.keys() - set(left_out))
    misshaped = [
        f"{name} {source[name].shape} (want {shape})"
        for name, shape in wanted.items()
        if name in source and source[name].shape != shape
    ]
    problems = (("missing", missing), ("surplus", surplus), ("of another shape", misshaped))
    if any(names for _, names in problems):
        text = "; ".join(f"{len(names)} {kind}: {_some(names)}" for kind, names in problems if names)
        raise UserError(
            f"weights {path}: not those of {backbone_name} ({text}); "
            f"set config.model.backbone.name to the file's network, or .weights to another file"
        )
    for name, place in places.items():
        flat[place] = _like(flat[place], _convert(source[name]))
    done = set(places.values())
    report = Report(
        path=str(path),
        loaded=sorted(wanted),
        missing=missing,
        surplus=left_out,
        reinitialised=["/".join(key) for key in sorted(flat) if key not in done],
    )
    return traverse_util.unflatten_dict(flat), report


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(
            f"weights {path}: no such file; give a .safetensors file with config.model.backbone.weights"
        )
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in (".pth", ".pt"):
        return _read_torch(path)
    raise UserError(f"weights {path}: unknown format {path.suffix!r}; want .safetensors, or .pth with torch")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(
            f"weights {path}: cannot be read as .safetensors, maybe cut short ({error}); fetch it again"
        ) from None


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"weights {path}: reading {path.suffix} needs torch; install it, or give a .safetensors file"
        ) from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        first = str(error).strip().split("\n")[0]
        raise UserError(
            f"weights {path}: cannot be read as torch weights ({first}); "
            "fetch it again, or give a .safetensors file"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"weights {path}: holds no flat dictionary of tensors; save the network's state_dict")
    return {name: value.float().numpy() for name, value in state.items()}


def _source_shape(place: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in the file of a target: convolutions come as [out, in, k, k]."""
    if place[-1] != "kernel":
        return tuple(shape)
    *window, fan_in, fan_out = shape
    return (fan_out, fan_in, *(window or (1, 1)))


def _convert(value: np.ndarray) -> np.ndarray:
    value = np.asarray(value, np.float32)
    if value.ndim == 4:
        value = value.transpose(2, 3, 1, 0)
    return np.ascontiguousarray(value)


def _like(old: Any, value: np.ndarray) -> Any:
    value = value.reshape(old.shape)
    return jax.device_put(value, old.sharding) if isinstance(old, jax.Array) else value


def _some(names: list[str], limit: int = 12) -> str:
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
