"""Opens and decodes encoded images of unknown origin; one with too many pixels is refused by its header."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

# Pillow's own limit. As RGB that is half a GiB; a header may claim far more in a hundred bytes.
MAX_PIXELS = 178_956_970

# Of Pillow's formats: without a decoder of its own, or (EPS) a program that another one runs.
_NO_IMAGES = ("BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF")

Encoded = bytes | Path | BinaryIO


class TooLargeError(ValueError):
    """An image of more pixels than are allowed; the message is one line without the file's name."""


def formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read, whatever a file is called."""
    Image.init()
    return tuple(name for name in Image.OPEN if name not in _NO_IMAGES)


def opened(
    data: Encoded, *, of_formats: Sequence[str] | None = None, max_pixels: int | None = None
) -> Image.Image:
    """The image with its header read; close it. Nothing of its pixels is decoded or allocated.

    Args:
        data: the file.
        of_formats: Pillow's names of those to be read; None: `formats()`.
        max_pixels: at most `MAX_PIXELS`, which it is where None.

    Raises:
        TooLargeError: its header claims more than `max_pixels` pixels.
        OSError, SyntaxError, ValueError: it is no image, or cut short.
    """
    max_pixels = MAX_PIXELS if max_pixels is None else max_pixels
    try:
        file = io.BytesIO(data) if isinstance(data, bytes) else data
        image = Image.open(file, formats=of_formats or formats())
    except Image.DecompressionBombError as error:
        count = re.search(r"(\d+) pixels", str(error))
        raise TooLargeError(_too_large(int(count[1]) if count else "too many", max_pixels)) from None
    except UnidentifiedImageError:  # its message names a buffer, not the file
        known = f"the formats {', '.join(of_formats)}" if of_formats else "a format that Pillow reads"
        raise OSError(f"no image of {known}") from None
    if image.width * image.height > max_pixels:
        image.close()
        raise TooLargeError(_too_large(image.width * image.height, max_pixels))
    return image


def _too_large(pixels: int | str, most: int) -> str:
    return f"{pixels} pixels, and more than {most} are never decoded; make it smaller"


def decode(data: bytes, flags: int) -> UInt8[np.ndarray, "h w *c"] | None:
    """Decodes an image with OpenCV (`flags` are its own, channels BGR); None where that fails.

    Raises:
        TooLargeError: as `opened`; OpenCV's own limit is six times as high.
    """
    try:
        with opened(data):
            pass
    except TooLargeError:
        raise
    except Exception:  # Pillow's readers of headers raise many kinds on bad bytes
        return None
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None
