"""Files of raw data sets: finding them, pairing them, reading labels."""

import collections
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Integer

from hfgd_jax.data import image_files
from hfgd_jax.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
JPEG_SUFFIXES = (".jpg", ".jpeg")
NAMED = 12  # files with the same fault that a message names


class ColourLabelError(UserError):
    """A label file that holds colours instead of ids."""


def listing(things: Sequence[str], joint: str = ", ") -> str:
    """The first `NAMED` of some things, joined, and how many there are, for messages."""
    first = joint.join(things[:NAMED])
    return first if len(things) <= NAMED else f"{first}{joint}... ({len(things)} in all)"


def first_folder(source: Path, *names: str, layout: str) -> Path:
    """The first of these folders in `source` that is there.

    Raises:
        UserError: none is; says which layout is wanted.
    """
    for name in names:
        if (source / name).is_dir():
            return source / name
    raise UserError(f"{source / names[0]}: no such folder; want {layout}")


def by_key(folder: Path, suffixes: Sequence[str], *, deep: bool = False, ending: str = "") -> dict[str, Path]:
    """Files with these suffixes by their names without suffix and `ending`, sorted.

    Args:
        folder: where they are; a missing one has no files.
        suffixes: in lower case, with the point.
        deep: in its subfolders, too; the key then is the path within `folder`, with slashes.
        ending: what a name must end in before its suffix; it is no part of the key.

    Raises:
        UserError: two files have the same key, or a pipe or device has such a name.
    """
    out: dict[str, Path] = {}
    for path in _files(folder, deep):
        stem, suffix = path.stem, path.suffix
        if path.name.startswith(".") or suffix.lower() not in suffixes or not stem.endswith(ending):
            continue
        key = (path.parent.relative_to(folder) / stem.removesuffix(ending)).as_posix()
        if key in out:
            raise UserError(f"{path}: {out[key].name} has the same name; which of them is meant?")
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UserError(f"{path}: is no file but a pipe or device, which may never end; remove it")
        out[key] = path
    return dict(sorted(out.items()))


def _files(folder: Path, deep: bool) -> Iterable[Path]:
    if not folder.is_dir():
        return []
    return sorted(folder.rglob("*") if deep else folder.iterdir())


def refuse_images_for_labels(labels: Path, found: dict[str, Path], deep: bool = False) -> None:
    """Raises where a folder of labels holds JPEGs alone: the folders are swapped, or the labels are lossy.

    Raises:
        UserError: it is such a folder; the message names a file.
    """
    jpegs = {} if found else by_key(labels, JPEG_SUFFIXES, deep=deep)
    if jpegs:
        raise UserError(
            f"{next(iter(jpegs.values()))}: a JPEG in the folder of the labels; are the folders of images "
            "and labels swapped? Labels are lossless (PNG)"
        )


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark.

    Raises:
        UserError: it cannot be read, or is in another encoding.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise UserError(
            f"{path}: cannot be read, for it is not in UTF-8 (byte {byte:#04x} in line "
            f"{error.object[: error.start].count(10) + 1}); save it as UTF-8, or, where it is Latin-1: "
            f"iconv -f latin1 -t utf-8 {path.name}"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def read_list(path: Path) -> list[str]:
    """The names in a split's list, one a line; blank lines are skipped.

    Raises:
        UserError: it cannot be read, is empty, or holds a name twice.
    """
    names = read_text(path).split("\n")
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise UserError(f"{path}: no names in this list")
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{path}: more than once in this list: {listing(twice)}")
    return names


def label_reader(suffix: str, key: str = "") -> Callable[[Path], Integer[np.ndarray, "h w"]]:
    """The function that reads label files of this suffix; `key` names the variable in `.mat` files."""
    return functools.partial(read_mat, key=key) if suffix == ".mat" else read_label


def read_label(path: Path) -> Integer[np.ndarray, "h w"]:
    """Ids of a one-channel label file; of a palette file the indices, not the colours.

    Raises:
        UserError: the file cannot be read, or has several channels (ColourLabelError).
    """
    try:
        with image_files.opened(path) as image:
            ids = np.asarray(image)
    except Exception as error:  # decoders raise many kinds on bad bytes
        raise UserError(f"{path}: label cannot be read ({error})") from None
    if ids.ndim != 2 or ids.dtype == bool or ids.dtype.kind == "f":
        raise ColourLabelError(f"{path}: label has mode {image.mode}; want one channel of ids (8 or 16 bits)")
    return ids


def read_mat(path: Path, key: str) -> Integer[np.ndarray, "h w"]:
    """The label map called `key` in a MATLAB file.

    Raises:
        UserError: the file cannot be read, or has no such map. One of more than `image_files.MAX_PIXELS`
            values is refused before they are read.
    """
    import scipy.io  # takes half a second, for MATLAB files alone

    try:
        shapes = {name: shape for name, shape, _ in scipy.io.whosmat(path)}
        if math.prod(shapes.get(key, ())) > image_files.MAX_PIXELS:
            raise ValueError(f"{key!r} is of shape {shapes[key]}: more than {image_files.MAX_PIXELS} values")
        ids = scipy.io.loadmat(path, variable_names=[key]).get(key)
    except NotImplementedError:  # scipy's answer to HDF5
        raise UserError(
            f"{path}: label cannot be read: a MATLAB 7.3 file, which is HDF5; in MATLAB: "
            f"load('{path.name}'), save('{path.name}', '{key}', '-v7')"
        ) from None
    except Exception as error:  # scipy and zlib raise many kinds
        raise UserError(f"{path}: label cannot be read ({error})") from None
    if ids is None:
        raise UserError(f"{path}: no variable {key!r} in it")
    if ids.ndim != 2 or ids.dtype.kind not in "uif" or (ids.dtype.kind == "f" and (ids % 1 != 0).any()):
        raise UserError(f"{path}: {key!r} is {ids.dtype} of shape {ids.shape}; want a map of whole numbers")
    return ids if ids.dtype.kind in "ui" else ids.astype(np.int64)


def image_size(data: bytes, name: str) -> tuple[int, int]:
    """Height and width of an encoded image, after decoding all of it.

    Raises:
        UserError: it cannot be decoded.
    """
    try:
        image = image_files.decode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except image_files.TooLargeError as error:
        raise UserError(f"{name}: image has {error}") from None
    if image is None:
        raise UserError(f"{name}: image cannot be decoded ({len(data)} bytes; truncated or not an image)")
    return image.shape[:2]


def looks_like_ids(data: bytes) -> bool:
    """Whether an encoded image has one channel (or a palette) and few values, as label files have."""
    with image_files.opened(data) as image:
        return image.mode in ("1", "L", "P", "I", "I;16") and len(np.unique(np.asarray(image))) <= 64
