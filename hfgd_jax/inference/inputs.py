"""Images to predict, from files of any kind or from a data set's split."""

import contextlib
import dataclasses
import glob
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image, ImageOps

from hfgd_jax.data import image_files
from hfgd_jax.data.prepared import CorruptRecordError, Split
from hfgd_jax.errors import UserError
from hfgd_jax.runtime import storage

Size = tuple[int, int]  # height, width

_ORIENTATION = 0x0112  # EXIF; 5 and above lie on their side


@dataclasses.dataclass(frozen=True)
class Source:
    """An image to come.

    Attributes:
        name: what its outputs are called, if no other has that name.
        kind: what they are called after besides, where names are alike.
        title: what it is called in messages.
        size: its height and width without decoding it; (1, 1) where that is unknown.
        read: the image, uint8 RGB `[h, w, 3]`, and what of the file is left out of it, if anything; raises
            Unreadable.
        path: the file, None where it is no file of its own.
    """

    name: str
    kind: str
    title: str
    size: Callable[[], Size]
    read: Callable[[], tuple[UInt8[np.ndarray, "h w 3"], str]]
    path: epath.Path | None = None


def suffixes() -> frozenset[str]:
    """Endings of files that count as images in a folder: those that Pillow here reads, with its plugins."""
    known = image_files.formats()
    return frozenset(end for end, name in Image.registered_extensions().items() if name in known)


class Unreadable(Exception):
    """An input that is no image, or cannot be handled; the message is one line."""


def as_rgb(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of a Pillow image as RGB, upright (see `read_image`).

    Raises:
        Unreadable: pixels are floats.
    """
    if image.mode == "F":
        raise Unreadable("pixels are floats: want 8 or 16 bits")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        wide = np.clip(np.asarray(image), 0, 65_535)
        image = Image.fromarray((wide >> 8).astype(np.uint8))
    return np.asarray(image.convert("RGB"))


def left_out(image: Image.Image) -> str:
    """What `as_rgb` leaves out of a loaded Pillow image, in words; empty where that is nothing."""
    frames, parts = getattr(image, "n_frames", 1), []
    if frames > 1:
        parts.append(f"the first of {frames} images in it")
    if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        parts.append("transparent parts in the colour beneath")
    return ", ".join(parts)


def read_image(path: epath.PathLike) -> UInt8[np.ndarray, "h w 3"]:
    """Reads any image as RGB, upright.

    EXIF rotation is applied; grey and palette images become RGB; 16-bit ones keep their high 8 bits;
    transparency is dropped (the colour beneath it counts); of animations and many-page files the first
    image is taken.

    Raises:
        Unreadable: no image, cut short, of floats, or of more pixels than `image_files.MAX_PIXELS`.
    """
    with _decoding(path), epath.Path(path).open("rb") as file, image_files.opened(file) as image:
        return as_rgb(image)


def read_with_remark(path: epath.PathLike) -> tuple[UInt8[np.ndarray, "h w 3"], str]:
    """As `read_image`, and `left_out`."""
    with _decoding(path), epath.Path(path).open("rb") as file, image_files.opened(file) as image:
        return as_rgb(image), left_out(image)


def read_bytes(
    data: bytes, *, formats: Sequence[str] | None = None, max_pixels: int | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """Reads the bytes of any image file as RGB, upright (see `read_image`).

    Args:
        data: the file's.
        formats: Pillow's names of those to be read; None: all (`image_files.formats`).
        max_pixels: more of them are refused before they are decoded; None: `image_files.MAX_PIXELS`.

    Raises:
        image_files.TooLargeError: of more pixels.
        Unreadable: no image of these formats, cut short, or of floats.
    """
    with (
        _decoding(passed=image_files.TooLargeError),
        image_files.opened(data, of_formats=formats, max_pixels=max_pixels) as image,
    ):
        return as_rgb(image)


@contextlib.contextmanager
def _decoding(path: epath.PathLike = "", passed: type[Exception] = Unreadable) -> Iterator[None]:
    """Turns what decoders raise on bad bytes (OSError, SyntaxError, struct.error, ...) into Unreadable.

    Args:
        path: whose name is left out of the reason.
        passed: stays what it is, as Unreadable does.
    """
    try:
        yield
    except (Unreadable, passed):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()).replace(f" {str(path)!r}", "")
        raise Unreadable(f"{reason or type(error).__name__}") from error


def find_images(inputs: str, output: epath.Path) -> list[epath.Path]:
    """The files that `inputs` (an image, a folder or a glob) stands for, sorted, outputs left out.

    Raises:
        UserError: nothing there.
    """
    path = storage.resolve(inputs, "--input")
    made = {storage.real(output / name) for name in ("masks", "overlays")}
    if path.is_dir():
        found, what = path.iterdir(), "the folder holds no image"
    elif path.exists():
        found, what = [path], "no image"
    elif glob.has_magic(inputs):
        found, what = _matching(path), "no image matches"
    else:
        raise UserError(f"--input={inputs}: no such file or folder")
    known = suffixes()
    files = [
        file
        for file in found
        if file == path
        or (file.suffix.lower() in known and not file.name.startswith(".") and not file.is_dir())
    ]
    kept = sorted(file for file in files if os.path.dirname(storage.real(file)) not in made)  # noqa: PTH120
    if files and not kept:
        raise UserError(
            f"--input={inputs}: these are outputs within --output={output}; choose another output"
        )
    if not kept:
        raise UserError(f"--input={inputs}: {what} of a format that Pillow reads (JPEG, PNG, TIFF, ...)")
    return kept


def _matching(pattern: epath.Path) -> list[epath.Path]:
    text = str(pattern)
    if not storage.is_remote(pattern):
        return [epath.Path(file) for file in glob.glob(text, recursive=True)]  # noqa: PTH207 (absolute globs)
    if "**" in text:
        raise UserError(f"--input={text}: ** reads a whole bucket; want * for one folder")
    return list(pattern.parent.glob(pattern.name))


def of_file(path: epath.Path) -> Source:
    """A file as a source."""

    def size() -> Size:
        try:
            with path.open("rb") as file, image_files.opened(file) as image:
                # Pillow has a TIFF's size as it is shown.
                turned = image.format != "TIFF" and image.getexif().get(_ORIENTATION, 1) >= 5
                return (image.width, image.height) if turned else (image.height, image.width)
        except Exception:  # read_image reports what is wrong
            return 1, 1

    return Source(path.stem, path.suffix[1:], str(path), size, lambda: read_with_remark(path), path)


def of_record(split: Split, index: int) -> Source:
    """A record of a data set's split as a source."""
    title = f"{split.dataset}/{split.split} record {index}"
    try:
        name = storage.file_name(split.record_id(index))
    except CorruptRecordError:
        name = f"record_{index}"  # reading it reports what is wrong

    def size() -> Size:
        try:
            return split.size(index)
        except CorruptRecordError:
            return 1, 1

    def read() -> tuple[np.ndarray, str]:
        try:
            return split.example(index)["image"], ""
        except CorruptRecordError as error:
            raise Unreadable(str(error)) from error

    return Source(name, str(index), f"{title} ({name})", size, read)
