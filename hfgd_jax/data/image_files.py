"""Opens and decodes encoded images of unknown origin; one with too many pixels is refused by its header."""

import io
import re
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

# Pillow's own limit. As RGB that is half a GiB; a header may claim far more in a hundred bytes.
MAX_PIXELS = 178_956_970

Encoded = bytes | Path | BinaryIO


class TooLargeError(ValueError):
    """An image of more than `MAX_PIXELS` pixels; the message is one line without the file's name."""


def opened(data: Encoded) -> Image.Image:
    """The image with its header read; close it. Nothing of its pixels is decoded or allocated.

    Raises:
        TooLargeError: its header claims more than `MAX_PIXELS` pixels.
        OSError, SyntaxError, ValueError: it is no image, or cut short.
    """
    try:
        image = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)
    except Image.DecompressionBombError as error:
        count = re.search(r"(\d+) pixels", str(error))
        raise TooLargeError(_too_large(int(count[1]) if count else "too many")) from None
    except UnidentifiedImageError:  # its message names a buffer, not the file
        raise OSError("no image of a format that Pillow reads") from None
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise TooLargeError(_too_large(image.width * image.height))
    return image


def _too_large(pixels: int | str) -> str:
    return f"{pixels} pixels, and more than {MAX_PIXELS} are never decoded; make it smaller"


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
