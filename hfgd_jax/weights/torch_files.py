"""Reads files of `torch.save` without torch: tensors and nothing else.

A file is a zip archive (torch 1.6 and later): a pickle `data.pkl`, and an entry `data/KEY` for each storage.
Or, in the legacy format, it is a sequence of pickles (magic number, protocol, system, the object, the keys of
its storages), followed by the storages, each after its count of numbers.
"""

import io
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hfgd_jax.errors import UserError, printable
from hfgd_jax.weights.torch_pickles import Content, Damaged, Foreign, Storage, Tensor, unpickle

SUFFIXES = (".pth", ".pt", ".bin")
WRAPPERS = ("state_dict", "model", "model_state")  # keys under which training scripts keep the tensors
MAX_PICKLE = 2**24  # bytes; about 300 a tensor
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # the legacy format's first two pickles
_ZIP = b"PK\x03\x04"


def read(file: Path, name: str) -> dict[str, np.ndarray]:
    """The tensors of a state_dict, as it was saved or under one of `WRAPPERS` in a checkpoint.

    Storages are read once each, and only those of the tensors returned, which are views of them.

    Args:
        file: of this machine.
        name: of the file in error messages.

    Returns:
        Arrays by their names, in their own types; bfloat16 is jax's.

    Raises:
        UserError: a damaged file, one of something else than torch, one that holds code or objects beside
            tensors, or no dictionary of tensors.
    """
    try:
        with file.open("rb") as opened:
            if opened.read(len(_ZIP)) == _ZIP:
                with zipfile.ZipFile(opened) as archive:
                    content, load = _read_zip(archive, file.stat().st_size)
                    return _arrays(content.value, load, name)
            content, load = _read_legacy(opened, file.stat().st_size)
            return _arrays(content.value, load, name)
    except UserError:
        raise
    except Foreign as error:
        raise UserError(
            f"weights {name}: holds more than tensors ({printable(str(error))}), which is never run; "
            "save the network's state_dict alone, or give a .safetensors file"
        ) from None
    except (Damaged, zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError) as error:
        raise UserError(
            f"weights {name}: cannot be read as torch weights ({printable(str(error))[:200]}); "
            "fetch it again, or give a .safetensors file"
        ) from None


def _arrays(value: Any, load: Callable[[Storage], np.ndarray], name: str) -> dict[str, np.ndarray]:
    for wrapper in WRAPPERS:
        if type(value) is dict and type(value.get(wrapper)) is dict:
            value = value[wrapper]
            break
    flat = type(value) is dict and all(type(key) is str for key in value)
    if not flat or not value or not all(type(tensor) is Tensor for tensor in value.values()):
        raise UserError(f"weights {name}: holds no flat dictionary of tensors; save the network's state_dict")
    read: dict[str, np.ndarray] = {}
    for tensor in value.values():
        if tensor.storage.key not in read:
            read[tensor.storage.key] = load(tensor.storage)
    return {key: _view(tensor, read[tensor.storage.key]) for key, tensor in value.items()}


def _view(tensor: Tensor, raw: np.ndarray) -> np.ndarray:
    dtype, item = tensor.storage.dtype, tensor.storage.dtype.itemsize
    if not math.prod(tensor.shape):
        return np.empty(tensor.shape, dtype)
    axes = zip(tensor.shape, tensor.strides, strict=True)
    # An axis of length 1 may have any stride, even one that no machine can hold.
    strides = [stride * item if length > 1 else item for length, stride in axes]
    return np.ndarray(tensor.shape, dtype, raw, tensor.offset * item, strides)


# -- the two formats --


def _read_zip(archive: zipfile.ZipFile, size: int) -> tuple[Content, Callable[[Storage], np.ndarray]]:
    pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise Damaged("a zip archive without one data.pkl in one folder")
    folder = pickles[0].removesuffix("data.pkl")

    def entry(name: str, at_most: int) -> zipfile.ZipInfo:
        try:
            info = archive.getinfo(folder + name)
        except KeyError:
            raise Damaged(f"the archive has no {name!r:.80}") from None
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise Damaged(f"{name!r:.80} is compressed, which torch never does")
        if info.file_size > at_most:
            raise Damaged(f"{name!r:.80} has {info.file_size} bytes, want at most {at_most}")
        return info

    if folder + "byteorder" in archive.namelist() and archive.read(entry("byteorder", 16)) != b"little":
        raise Damaged("its numbers are big-endian")
    pickled = archive.read(entry("data.pkl", MAX_PICKLE))
    content = unpickle(io.BytesIO(pickled))
    if sum(storage.size for storage in content.storages.values()) > size:
        raise Damaged("its storages are larger than the file")

    def load(storage: Storage) -> np.ndarray:
        info = entry(f"data/{storage.key}", storage.size)
        if info.file_size != storage.size:
            raise Damaged(f"storage {storage.key!r:.80} has {info.file_size} bytes, want {storage.size}")
        with archive.open(info) as opened:
            return _bytes(opened, storage)

    return content, load


def _read_legacy(opened: BinaryIO, size: int) -> tuple[Content, Callable[[Storage], np.ndarray]]:
    opened.seek(0)
    start = opened.read(MAX_PICKLE)
    if not start.startswith(b"\x80"):
        raise Damaged("neither a zip archive nor a pickle")
    head = io.BytesIO(start)
    if unpickle(head).value != _MAGIC:
        raise Damaged("does not begin as torch.save's files do")
    if unpickle(head).value != _PROTOCOL:
        raise Damaged(f"of another protocol than {_PROTOCOL}")
    system = unpickle(head).value
    if type(system) is not dict or system.get("little_endian") is not True:
        raise Damaged("its numbers are big-endian")
    content, keys = unpickle(head), unpickle(head).value
    listed = type(keys) is list and all(type(key) is str for key in keys)
    if not listed or len(set(keys)) != len(keys) or set(keys) != content.storages.keys():
        raise Damaged("its list of storages is not that of its tensors")
    offsets, offset = {}, head.tell()
    for storage in map(content.storages.__getitem__, keys):
        opened.seek(offset)
        count = int.from_bytes(opened.read(8), "little")
        if offset + 8 + storage.size > size:
            raise Damaged("cut short")
        if count != storage.count:
            raise Damaged(f"storage {storage.key!r:.80} has {count} numbers, want {storage.count}")
        offsets[storage.key] = offset + 8
        offset += 8 + storage.size

    def load(storage: Storage) -> np.ndarray:
        opened.seek(offsets[storage.key])
        return _bytes(opened, storage)

    return content, load


def _bytes(opened: Any, storage: Storage) -> np.ndarray:
    """Reads a storage as uint8 from an open file's position; it must be no larger than the file."""
    raw = np.empty(storage.size, np.uint8)
    view, done = memoryview(raw), 0
    while done < storage.size:
        got = opened.readinto(view[done : done + 2**20])
        if not got:
            raise Damaged("cut short")
        done += got
    return (raw != 0).view(np.uint8) if storage.dtype == bool else raw
