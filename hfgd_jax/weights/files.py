"""Reads and writes weight files as arrays by name, whatever project wrote them; no code in a file is run."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from etils import epath
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from hfgd_jax.errors import UserError
from hfgd_jax.runtime import storage
from hfgd_jax.weights import sources, torch_files
from hfgd_jax.weights.sources import INDEX, SINGLE

IN_FOLDERS = (SINGLE, INDEX, "pytorch_model.bin")


def read(name: epath.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a weight file, by their names there and in their own types.

    Args:
        name: what `weights.sources.locate` takes. A path is that of a `.safetensors` file; of a `.pth`,
            `.pt` or `.bin` file of torch, from which only tensors are read; of a folder as transformers
            saves it; or of the index of a file in shards (`*.safetensors.index.json`). A file in a bucket
            is copied to this machine while it is read.

    Raises:
        UserError: nothing there, no weight file, a damaged one, or one that holds code.
    """
    path = sources.locate(name)
    if path.is_dir():
        found = [path / file for file in IN_FOLDERS if (path / file).is_file()]
        if not found:
            raise UserError(f"weights {path}: the folder holds none of {', '.join(IN_FOLDERS)}")
        path = found[0]
    if path.name.endswith(".safetensors.index.json"):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in torch_files.SUFFIXES:
        with storage.local(path) as file:
            return torch_files.read(file, str(path))
    raise UserError(f"weights {path}: unknown format {path.suffix!r}; want .safetensors or .pth")


def write(path: epath.PathLike, tensors: Mapping[str, np.ndarray], *, overwrite: bool = False) -> None:
    """Writes a `.safetensors` file, whole or not at all, making its folder.

    Raises:
        UserError: the file exists and `overwrite` is off, or it cannot be written.
    """
    path = storage.resolve(path, "--output")
    if path.exists() and not overwrite:
        raise UserError(f"{path}: exists; pass --overwrite to replace it, or choose another output")
    contiguous = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with storage.writing(path) as part:
            save_file(contiguous, part, metadata={"format": "pt"})  # transformers insists on the format
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be written ({error})") from None


def _read_shards(path: epath.Path) -> dict[str, np.ndarray]:
    shards, tensors = sources.weight_map(path), {}
    for shard in sorted(set(shards.values())):
        if Path(shard).name != shard or not (path.parent / shard).is_file():
            raise UserError(f"{path}: its shard {shard!r} is not beside it; fetch the folder again")
        tensors |= _read_safetensors(path.parent / shard)
    absent = sorted(shards.keys() - tensors.keys())
    if absent:
        raise UserError(f"{path}: {first_names(absent)} not in the shards; fetch the folder again")
    return tensors


def _read_safetensors(path: epath.Path) -> dict[str, np.ndarray]:
    try:
        with storage.local(path) as file:
            return load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        if _is_pickle(path):
            raise UserError(
                f"weights {path}: is a torch file (a pickle), not .safetensors, and was not loaded; "
                "if you trust its origin, name it .pth: it is then read as tensors only"
            ) from None
        raise UserError(
            f"weights {path}: cannot be read as .safetensors, maybe cut short ({error}); fetch it again"
        ) from None


def _is_pickle(path: epath.Path) -> bool:
    """Whether a file that is no .safetensors starts like a torch file: a zip archive or a bare pickle."""
    with path.open("rb") as opened:
        head = opened.read(4)
    return head == b"PK\x03\x04" or head[:1] == b"\x80"


def first_names(names: list[str], limit: int = 12) -> str:
    """The first names, joined by commas, and the number of the others."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
