"""The small pictures of a report: images as WebP, masks as PNG with as few colours as they have.

A browser does not let a page read the pixels of a `file://` picture: a mask is written as it is to be seen.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from hfgd_jax.data.labels import IGNORE
from hfgd_jax.inference.render import Palette, encoded, lookup

LEVELS = 16  # of confidence: 4 bits a pixel
_AGREE, _DISAGREE, _DOUBTED, _IGNORED = range(4)
_MISTAKES = ((0, 0, 0), (230, 97, 0), (214, 0, 60), (128, 128, 128))


def reduced(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Height and width with the longer side at most `side`, at least 1 each."""
    factor = min(1.0, side / max(size))
    height, width = (max(1, round(length * factor)) for length in size)
    return height, width


def photo(image: UInt8[np.ndarray, "h w 3"], side: int, quality: int) -> bytes:
    """The image as WebP, its longer side at most `side` pixels."""
    height, width = reduced(image.shape[:2], side)
    picture = Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.BOX)
    return encoded(picture, format="WEBP", quality=quality, method=2)


def mask(ids: UInt8[np.ndarray, "h w"], palette: Palette, side: int) -> bytes:
    """Train ids in the classes' colours as PNG; ignored pixels are transparent."""
    colours = lookup(palette)
    colours[IGNORE] = 0
    return _indexed(_nearest(ids, side), colours, [IGNORE])


def mistakes(
    label: UInt8[np.ndarray, "h w"],
    ids: UInt8[np.ndarray, "h w"],
    given: Float32[np.ndarray, "h w"],
    doubt: float,
    side: int,
) -> bytes:
    """Where the mask is not the label, in a second colour where the label is doubted; else transparent.

    Ignored pixels are grey. `given` is the probability of the label's class, doubted up to `doubt`.
    """
    wrong = ids != label
    kind = np.where(wrong, np.where(given <= doubt, _DOUBTED, _DISAGREE), _AGREE).astype(np.uint8)
    kind[label == IGNORE] = _IGNORED
    return _indexed(_nearest(kind, side), np.array(_MISTAKES, np.uint8), [_AGREE])


def certainty(confidence: Float32[np.ndarray, "h w"], side: int) -> bytes:
    """The confidence as PNG, black where the model wavers and white where it is sure, in `LEVELS` steps."""
    height, width = reduced(confidence.shape, side)
    values = Image.fromarray(np.asarray(confidence * 255, np.uint8)).resize(
        (width, height), Image.Resampling.BOX
    )
    levels = np.asarray(values) // (256 // LEVELS)
    greys = np.repeat(np.linspace(0, 255, LEVELS).astype(np.uint8)[:, None], 3, axis=1)
    return _indexed(levels, greys, [])


def _nearest(ids: np.ndarray, side: int) -> np.ndarray:
    height, width = reduced(ids.shape, side)
    if (height, width) == ids.shape:
        return ids
    return np.asarray(Image.fromarray(ids).resize((width, height), Image.Resampling.NEAREST))


def _indexed(ids: np.ndarray, colours: np.ndarray, clear: Sequence[int]) -> bytes:
    """An index PNG that has only the colours in use: 1, 2 or 4 bits a pixel where those are few."""
    used = np.flatnonzero(np.bincount(ids.ravel(), minlength=256))
    places = np.zeros(256, np.uint8)
    places[used] = np.arange(len(used))
    picture = Image.fromarray(places[ids])
    picture.putpalette(colours[used].tobytes())
    alpha = bytes(0 if k in clear else 255 for k in used.tolist())
    return encoded(picture, format="PNG", optimize=False, **({"transparency": alpha} if 0 in alpha else {}))
