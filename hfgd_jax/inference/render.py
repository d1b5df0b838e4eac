"""Pictures of masks: index PNGs, overlays, legends and comparisons. A file appears whole or not at all."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Integer, UInt8
from PIL import Image, ImageDraw, ImageFont

from hfgd_jax.data.labels import IGNORE
from hfgd_jax.runtime.storage import write_atomically

IGNORE_COLOR = (224, 224, 192)  # of index 255 in a mask file, VOC's "void"

Palette = Sequence[Sequence[int] | np.ndarray] | np.ndarray

_MARGIN, _TEXT, _PAPER, _INK = 8, 15, (255, 255, 255), (32, 32, 32)
_PANEL_WIDTHS = (320, 960)  # panels of a comparison are scaled to lie between these


def write_mask(path: epath.PathLike, mask: Integer[np.ndarray, "h w"], palette: Palette) -> None:
    """Writes class ids as an 8-bit index PNG that viewers show in the palette's colours; 255 stays 255.

    Args:
        path: the PNG file; its folder must exist.
        mask: class ids 0-254 and 255 for ignored, of any integer type.
        palette: K colours, each three integers 0-255.

    Raises:
        ValueError: an id that is neither in the palette nor 255.
    """
    write_atomically(path, mask_png(mask, palette))


def mask_png(mask: Integer[np.ndarray, "h w"], palette: Palette) -> bytes:
    """The bytes of the file that `write_mask` writes; raises what it raises."""
    image = Image.fromarray(_checked(mask, palette))
    image.putpalette(lookup(palette).tobytes())
    return encoded(image, format="PNG", optimize=False)


def write_image(path: epath.PathLike, image: UInt8[np.ndarray, "h w 3"]) -> None:
    """Writes RGB as PNG or, for a name in .jpg or .jpeg, as JPEG (quality 92); the folder must exist."""
    picture = Image.fromarray(np.ascontiguousarray(image, dtype=np.uint8))
    if epath.Path(path).suffix.lower() in (".jpg", ".jpeg"):
        _write(path, picture, format="JPEG", quality=92, subsampling=0)
    else:
        _write(path, picture, format="PNG")


def write_ids(path: epath.PathLike, ids: Integer[np.ndarray, "h w"]) -> None:
    """Writes ids as a grey PNG without a palette: 8 bits for uint8, 16 bits for uint16."""
    _write(path, Image.fromarray(np.ascontiguousarray(ids)), format="PNG")


def overlay(
    image: UInt8[np.ndarray, "h w 3"], mask: Integer[np.ndarray, "h w"], palette: Palette, alpha: float = 0.5
) -> UInt8[np.ndarray, "h w 3"]:
    """Blends the classes' colours over the image; pixels of id 255 and of black classes stay as they are.

    Black is the colour of a background: painted, it would look like a darkened photograph.

    Args:
        image: uint8 RGB.
        mask: class ids, of the image's height and width.
        palette: K colours, each three integers 0-255.
        alpha: weight of the colour, 0 (image only) to 1 (colour only); kept to 1/256.

    Raises:
        ValueError: sizes that differ, or an id that is neither in the palette nor 255.
    """
    mask = _checked(mask, palette)
    if image.shape != (*mask.shape, 3):
        raise ValueError(f"image {image.shape} and mask {mask.shape} differ in size")
    weight = np.uint16(round(256 * alpha))
    colors = lookup(palette).astype(np.uint16) * weight + 128  # at most 255 * 256 + 128: fits 16 bits
    blended = ((image.astype(np.uint16) * (256 - weight) + colors[mask]) >> 8).astype(np.uint8)
    bare = np.zeros(256, bool)
    bare[: len(palette)] = ~np.asarray(palette, np.uint8).any(-1)
    bare[IGNORE] = True
    return np.where(bare[mask][..., None], image, blended)


def legend(classes: Sequence[str], palette: Palette, width: int) -> UInt8[np.ndarray, "h width 3"]:
    """A strip of coloured squares with the classes' names, in as many lines as `width` pixels need.

    The square of a black class is empty, as `overlay` does not paint it.
    """
    font = _font()
    canvas = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    square, line = _TEXT, _TEXT + 9
    places, x, y = [], _MARGIN, _MARGIN
    for name in classes:
        advance = square + 6 + int(np.ceil(canvas.textlength(name, font=font))) + 18
        if x > _MARGIN and x + advance - 18 > width - _MARGIN:
            x, y = _MARGIN, y + line
        places.append((x, y))
        x += advance
    strip = Image.new("RGB", (width, y + line), _PAPER)
    canvas = ImageDraw.Draw(strip)
    for name, color, (x, y) in zip(classes, palette, places, strict=False):
        box = (x, y, x + square - 1, y + square - 1)
        fill = tuple(int(c) for c in color) if any(color) else None
        canvas.rectangle(box, fill=fill, outline=(128, 128, 128))
        canvas.text((x + square + 6, y + square / 2), name, fill=_INK, font=font, anchor="lm")
    return np.asarray(strip)


def side_by_side(
    image: UInt8[np.ndarray, "h0 w0 3"],
    prediction: Integer[np.ndarray, "h w"],
    label: Integer[np.ndarray, "h w"] | None,
    palette: Palette,
    classes: Sequence[str],
    *,
    alpha: float = 0.6,
) -> UInt8[np.ndarray, "H W 3"]:
    """Image, prediction and label next to each other, titled, above a legend of the classes in sight.

    The image may be of another size than the masks (it is resized to theirs); small images are enlarged
    and large ones reduced, so the size of the result is not the image's.

    Args:
        image: uint8 RGB.
        prediction: class ids.
        label: class ids, 255 for ignored (shown as the bare image), of the prediction's size; None for none.
        palette: K colours, each three integers 0-255.
        classes: K names.
        alpha: weight of the colours.
    """
    size = (prediction.shape[1], prediction.shape[0])
    if image.shape[:2] != prediction.shape:
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    panels = {"image": image, "prediction": overlay(image, prediction, palette, alpha)}
    masks = [prediction]
    if label is not None:
        panels["label"] = overlay(image, label, palette, alpha)
        masks.append(label)
    pictures = [_panel(picture, title) for title, picture in panels.items()]
    gap = np.full((pictures[0].shape[0], _MARGIN, 3), _PAPER, np.uint8)
    row = np.concatenate([gap] + [part for picture in pictures for part in (picture, gap)], axis=1)
    seen = [k for k in np.unique(np.concatenate([m.ravel() for m in masks])) if k != IGNORE]
    strip = legend([classes[k] for k in seen], [palette[k] for k in seen], row.shape[1])
    return np.concatenate([row, strip], axis=0)


def confusion(matrix: Integer[np.ndarray, "k k"], classes: Sequence[str]) -> UInt8[np.ndarray, "H W 3"]:
    """A confusion matrix as a picture: a row a class of the label, a column a class of the prediction.

    A cell goes from white to dark blue with its share of the row's pixels. Columns have their numbers.
    Of many classes the cells are small and have no names, so that the picture stays below 1500 pixels.

    Args:
        matrix: pixels; rows are truth.
        classes: K names.
    """
    font, cell = _font(), max(1, min(3 * _TEXT, 1200 // len(classes)))
    canvas = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    named = [f"{name}  {number}" for number, name in enumerate(classes) if cell > _TEXT]
    left = 2 * _MARGIN + int(np.ceil(max((canvas.textlength(name, font=font) for name in named), default=0)))
    top = 2 * _MARGIN + _TEXT
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    colors = np.uint8(np.round(255 + shares[..., None] * (np.array((8, 48, 107)) - 255)))
    size = cell * len(classes)
    sheet = Image.new("RGB", (left + size + _MARGIN, top + size + _MARGIN), _PAPER)
    cells = Image.fromarray(colors).resize((size, size), Image.Resampling.NEAREST)
    sheet.paste(cells, (left, top))
    canvas = ImageDraw.Draw(sheet)
    for number, name in enumerate(named):
        middle = cell * number + cell / 2
        canvas.text((left - _MARGIN, top + middle), name, fill=_INK, font=font, anchor="rm")
        canvas.text((left + middle, top - _MARGIN), str(number), fill=_INK, font=font, anchor="ms")
    canvas.rectangle((left, top, left + size - 1, top + size - 1), outline=(128, 128, 128))
    return np.asarray(sheet)


def _panel(picture: np.ndarray, title: str) -> np.ndarray:
    low, high = _PANEL_WIDTHS
    height, width = picture.shape[:2]
    view = Image.fromarray(picture)
    if width < low:
        factor = -(-low // width)
        view = view.resize((width * factor, height * factor), Image.Resampling.NEAREST)
    elif width > high:
        view = view.resize((high, max(1, round(height * high / width))), Image.Resampling.BOX)
    top = _TEXT + 11
    sheet = Image.new("RGB", (view.width, view.height + top), _PAPER)
    sheet.paste(view, (0, top))
    ImageDraw.Draw(sheet).text((0, top / 2), title, fill=_INK, font=_font(), anchor="lm")
    return np.asarray(sheet)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_TEXT)  # the font that comes with Pillow: the same on every machine


def _checked(mask: np.ndarray, palette: Palette) -> np.ndarray:
    mask = np.asarray(mask)
    known = (mask >= 0) & (mask < len(palette)) | (mask == IGNORE)
    if not known.all():
        raise ValueError(
            f"mask: id {int(mask[~known][0])} is neither in the palette of {len(palette)} nor 255"
        )
    return np.ascontiguousarray(mask, dtype=np.uint8)


def lookup(palette: Palette) -> UInt8[np.ndarray, "256 3"]:
    """The colour of every id: the palette's, and `IGNORE_COLOR` of 255."""
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(palette)] = np.asarray(palette, np.uint8)
    colors[IGNORE] = IGNORE_COLOR
    return colors


def encoded(image: Image.Image, **options: Any) -> bytes:
    """The bytes of a file; `options` are those of Pillow's `save`, with `format`."""
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def _write(path: epath.PathLike, image: Image.Image, **options: Any) -> None:
    write_atomically(path, encoded(image, **options))
