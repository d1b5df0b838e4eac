"""Augmentation of one example on the host: pure functions of (image, label, rng), uint8 in and out.

Geometry. Images and labels are resized as areas of pixels (the half-pixel convention: output pixel i of an
image scaled by s covers the input from i / s to (i + 1) / s), whatever grid the model works on; s is the
same for both axes, a fraction p / q with q <= 64, and the scaled size is the original's times s, rounded.
Images are interpolated linearly where they grow and averaged over areas where they shrink, labels take
the nearest pixel. Only the part of the image that the crop needs is resized: it is cut along multiples of
q, where both grids meet, so that the result is the one of resizing the whole and cropping it.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from fractions import Fraction

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from hfgd_jax.data.labels import IGNORE

cv2.setNumThreads(0)  # the loader has its own threads

Image = UInt8[np.ndarray, "h w 3"]
Whole = UInt8[np.ndarray, "h0 w0 3"]  # what an image was cut from
Label = UInt8[np.ndarray, "h w"]

BRIGHTNESS = 32.0  # grey levels
FACTOR = (0.75, 1.25)  # of contrast and of saturation
PUBLIC_FACTOR = (0.5, 1.5)  # the public code's
HUE = 0.1  # of the full circle


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `augment` does.

    Attributes:
        crop: height and width of the result.
        mean_pixel: RGB, 0-255; fills what lies outside the image.
        input_scale: the image's size is multiplied by this, before the random scale.
        scale_range, scale_step: random scale, uniform among low, low + step, ..., high (step 0: any value).
        flip: probability of a mirror image.
        photometric: `none`, `plain`, `advanced` or `public`.
    """

    crop: tuple[int, int]
    mean_pixel: tuple[float, float, float]
    input_scale: float = 1.0
    scale_range: tuple[float, float] = (0.5, 2.0)
    scale_step: float = 0.25
    flip: float = 0.5
    photometric: str = "advanced"


def augment(
    image: Image, label: Label, rng: np.random.Generator, settings: Settings
) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W"]]:
    """Random scale, crop, photometric distortion and mirror image, padded to the crop with the mean pixel.

    The distortion touches the image alone, never the padding. What the padding covers is ignored in the
    label.
    """
    whole = image
    drawn = draw_scale(rng, settings.scale_range, settings.scale_step)
    scale = as_fraction(settings.input_scale * drawn)
    size = scaled_size(image.shape[:2], scale)
    height, width = (min(s, c) for s, c in zip(size, settings.crop, strict=True))
    top, left = (int(rng.integers(s - c + 1)) for s, c in zip(size, (height, width), strict=True))
    image = resize_window(image, scale, (top, left), (height, width))
    label = resize_label_window(label, scale, (top, left), (height, width))
    image = photometric(image, rng, settings.photometric, whole)
    if rng.random() < settings.flip:
        image, label = cv2.flip(image, 1), cv2.flip(label, 1)
    return pad_image(image, settings.crop, settings.mean_pixel), pad_label(label, settings.crop)


def draw_scale(rng: np.random.Generator, scale_range: tuple[float, float], step: float) -> float:
    """A scale from the range, both ends included; a multiple of `step` above the low end where step > 0."""
    low, high = scale_range
    if step <= 0:
        return float(rng.uniform(low, high))
    return low + step * int(rng.integers(math.floor((high - low) / step + 1e-6) + 1))


@functools.lru_cache(maxsize=256)
def as_fraction(scale: float) -> Fraction:
    """The fraction p / q, q <= 64, that stands for a scale (at least 1 / 64)."""
    return max(Fraction(scale).limit_denominator(64), Fraction(1, 64))


def scaled_size(size: tuple[int, int], scale: Fraction) -> tuple[int, int]:
    """Height and width of an image after scaling: rounded, halves down, at least 1."""
    return tuple(max(1, math.ceil(s * scale - Fraction(1, 2))) for s in size)


def resize_image(image: Image, scale: float) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The whole image, scaled (see the module's geometry)."""
    scale = as_fraction(scale)
    return resize_window(image, scale, (0, 0), scaled_size(image.shape[:2], scale))


def resize_window(
    image: Image, scale: Fraction, offset: tuple[int, int], size: tuple[int, int]
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The window of `size` at `offset` (top, left) of the scaled image, resizing little more than that."""
    (top, left), (height, width) = offset, size
    if scale == 1:
        return np.ascontiguousarray(image[top : top + height, left : left + width])
    p, q = scale.numerator, scale.denominator
    start, stop = [], []
    for first, count, length in zip(offset, size, image.shape[:2], strict=True):
        # two input pixels more on each side, for the interpolation, then outwards to multiples of q
        begin, end = first * q // p - 2, -(-(first + count) * q // p) + 2
        start.append(max(0, begin // q * q))
        stop.append(min(length, -(-end // q) * q))
    part = image[start[0] : stop[0], start[1] : stop[1]]
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    if min(part.shape[:2]) * scale < 1:  # an image thinner than one output pixel
        whole = cv2.resize(part, (max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale))))
    else:
        whole = cv2.resize(part, None, fx=float(scale), fy=float(scale), interpolation=method)
    top, left = top - start[0] * p // q, left - start[1] * p // q
    return np.ascontiguousarray(whole[top : top + height, left : left + width])


def resize_label_window(
    label: Label, scale: Fraction, offset: tuple[int, int], size: tuple[int, int]
) -> UInt8[np.ndarray, "h2 w2"]:
    """The label of the window that `resize_window` gives: the nearest pixel of the original."""
    rows, columns = (
        np.minimum(
            ((2 * np.arange(first, first + count) + 1) * scale.denominator) // (2 * scale.numerator),
            length - 1,
        )
        for first, count, length in zip(offset, size, label.shape, strict=True)
    )
    return label[rows][:, columns]


def pad_image(
    image: Image, size: tuple[int, int], mean_pixel: Sequence[float] | Float[np.ndarray, "3"]
) -> UInt8[np.ndarray, "H W 3"]:
    """Pads at the bottom and right with the mean pixel, rounded."""
    out = np.empty((*size, 3), np.uint8)
    out[:] = np.clip(np.rint(mean_pixel), 0, 255)
    out[: image.shape[0], : image.shape[1]] = image
    return out


def pad_label(label: Label, size: tuple[int, int]) -> UInt8[np.ndarray, "H W"]:
    """Pads at the bottom and right with the ignored label."""
    out = np.full(size, IGNORE, np.uint8)
    out[: label.shape[0], : label.shape[1]] = label
    return out


def photometric(image: Image, rng: np.random.Generator, mode: str, whole: Whole) -> Image:
    """Random distortion of colours; each part happens with probability 0.5.

    `plain`: brightness, +-32 grey levels. `advanced`: that, then contrast (about the mean of each channel)
    and saturation by factors of 0.75 to 1.25, and hue by +-0.1 of the circle. `none`: nothing.

    `public`: contrast and saturation by factors of 0.5 to 1.5, then brightness, +-32: the public code's,
    which distorts before it crops, so that contrast is about the mean of the whole image. It clips to 0-255
    at the end alone; here every part does.

    Args:
        image: the crop.
        rng: of the sample.
        mode: see above.
        whole: the image that it was cut from, at any scale.
    """
    if mode == "none":
        return image
    if mode == "public":
        return _public(image, rng, whole)
    parts = 1 if mode == "plain" else 4
    on = rng.random(parts) < 0.5
    amount = rng.uniform(-1.0, 1.0, parts)
    if on[0]:
        image = brightness(image, BRIGHTNESS * amount[0])
    if parts == 1:
        return image
    middle, half = sum(FACTOR) / 2, (FACTOR[1] - FACTOR[0]) / 2
    if on[1]:
        image = contrast(image, middle + half * amount[1], image)
    if on[2] or on[3]:
        image = saturation_and_hue(
            image, middle + half * amount[2] if on[2] else 1.0, HUE * amount[3] if on[3] else 0.0
        )
    return image


def _public(image: Image, rng: np.random.Generator, whole: Whole) -> Image:
    on = rng.random(3) < 0.5
    first, second = rng.uniform(*PUBLIC_FACTOR, 2)
    delta = rng.uniform(-BRIGHTNESS, BRIGHTNESS)
    if on[0]:
        image = contrast(image, first, whole)
    if on[1]:
        image = saturation_and_hue(image, second, 0.0)
    return brightness(image, delta) if on[2] else image


_LEVELS = np.arange(256, dtype=np.float64)


def brightness(image: Image, delta: float) -> Image:
    """Adds `delta` grey levels."""
    return cv2.LUT(image, _table(_LEVELS + delta))


def contrast(image: Image, factor: float, whole: Whole) -> Image:
    """Multiplies the distance to the mean of each channel of `whole` by `factor`."""
    mean = np.array(cv2.mean(whole)[:3])
    return cv2.LUT(image, _table(mean + (_LEVELS[:, None] - mean) * factor)[None])


def saturation_and_hue(image: Image, factor: float, turn: float) -> Image:
    """Multiplies the HSV saturation by `factor` and turns the hue by `turn` full circles."""
    hue = (np.arange(256) + round(turn * 256)) % 256
    tables = np.stack([hue, np.rint(np.clip(_LEVELS * factor, 0, 255)), _LEVELS], -1).astype(np.uint8)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    return cv2.cvtColor(cv2.LUT(hsv, tables[None]), cv2.COLOR_HSV2RGB_FULL)


def _table(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
