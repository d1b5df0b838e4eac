"""Pictures in, masks and overlays out: files of any size and kind, whatever predicts."""

import contextlib
import dataclasses
import functools
import glob
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from hfgd_jax import render
from hfgd_jax.data import augment, buckets
from hfgd_jax.data.labels import LabelTable
from hfgd_jax.errors import UserError
from hfgd_jax.geometry import Geometry

Size = tuple[int, int]  # height, width
# (image uint8 [1, H, W, 3] on its canvas, (h, w) of the image proper, (H, W) of the mask) -> uint8 [H, W]
PredictFn = Callable[
    [UInt8[np.ndarray, "1 H W 3"], tuple[int, int], tuple[int, int]], UInt8[np.ndarray, "h w"]
]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
MAX_SIDE = 2048  # pixels of the longer side, at most, in the model and of its mask: memory grows fast
_ORIENTATION = 0x0112  # EXIF; 5 and above lie on their side


@dataclasses.dataclass(frozen=True)
class PredictReport:
    """What a run did."""

    masks: tuple[Path, ...]  # files written, one an image
    skipped: tuple[str, ...]  # `FILE: reason`, one an input that could not be read
    stopped: bool  # before the last image, by request
    output: Path

    @property
    def exit_code(self) -> int:
        """0, or 1 where an input was skipped."""
        return 1 if self.skipped else 0

    def summary(self) -> str:
        """What was written and where, in a line or two."""
        where = f"masks in {self.output / 'masks'}, overlays in {self.output / 'overlays'}"
        lines = [f"{len(self.masks)} images: {where}"]
        if self.skipped:
            lines.append(f"{len(self.skipped)} could not be read and were skipped (see above)")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class _Job:
    source: Path
    mask: Path
    overlay: Path


def run(
    predict_fn: PredictFn,
    inputs: str,
    output: str | os.PathLike,
    *,
    table: LabelTable,
    mean_pixel: Float[np.ndarray, "3"],
    geometry_name: Geometry = "align_corners",
    input_scale: float = 1.0,
    alpha: float = 0.5,
    overwrite: bool = False,
    max_side: int = MAX_SIDE,
    should_stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], Any] = print,
) -> PredictReport:
    """Predicts every image of `inputs` into `OUTPUT/masks/NAME.png` and `OUTPUT/overlays/NAME.jpg`.

    A mask has its image's size (as shown: EXIF rotation is applied) and holds the train ids as an index PNG
    in the data set's colours, which `OUTPUT/overlays/legend.png` names. An input that cannot be read is told
    in a line, skipped, and counted in the report. A file appears whole or not at all.

    Args:
        predict_fn: gets the image on a canvas (uint8 `[1, H, W, 3]`, padded at the bottom and right with the
            mean pixel up to one of few sizes), the `(h, w)` of the image proper on it and the `(h, w)` of the
            mask wanted; returns that mask, uint8.
        inputs: an image; a folder, whose images are taken without its subfolders; or a glob (`**` for any
            depth). In folders and globs a file counts as an image by its suffix.
        output: folder, made where missing. Files within its `masks` and `overlays` are never inputs.
        table: the classes and their colours.
        mean_pixel: RGB 0-255, the padding.
        geometry_name: `align_corners` or `half_pixel`, for the form of the canvas.
        input_scale: images are resized by it for the model, as in training; masks keep the image's own size.
        alpha: weight of the colours in the overlays.
        overwrite: replace outputs that are already there; inputs are never replaced.
        max_side: a longer side beyond it is reduced to it for the model and its mask, which is then enlarged
            (nearest); the image's line says so.
        should_stop: asked before each image.
        say: told a line per image.

    Raises:
        UserError: no image to be found at `inputs`, outputs that exist, or an output folder that cannot be
            written or would put outputs over inputs.
    """
    output = Path(output).expanduser()
    sources = find_images(inputs, output)
    jobs = _plan(sources, output, overwrite)
    with _writing(output):
        (output / "masks").mkdir(parents=True, exist_ok=True)
        (output / "overlays").mkdir(exist_ok=True)
        render.write_image(
            output / "overlays" / "legend.png", render.legend(table.classes, table.palette, 960)
        )
    fit = functools.partial(_fit, input_scale=input_scale, max_side=max_side)
    canvases = _canvases(sources, fit, geometry_name)
    masks, skipped, stopped = [], [], False
    for number, (job, image) in enumerate(_read_ahead(jobs), start=1):
        if stopped := should_stop():
            break
        head = f"[{number}/{len(jobs)}] {job.source}"
        try:
            if isinstance(image, Unreadable):
                raise image
            mask, note = _predict_one(predict_fn, image, fit, canvases[number - 1], mean_pixel, input_scale)
        except Unreadable as error:
            skipped.append(f"{job.source}: {error}")
            say(f"{head}: skipped: {error}")
            continue
        with _writing(output):
            render.write_image(job.overlay, render.overlay(image, mask, table.palette, alpha))
            render.write_mask(job.mask, mask, table.palette)
        masks.append(job.mask)
        say(f"{head} -> {job.mask}  {_shares(mask, table.classes)}{note}")
    return PredictReport(tuple(masks), tuple(skipped), stopped, output)


@contextlib.contextmanager
def _writing(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"--output={output}: cannot write: {error}") from error


class Unreadable(Exception):
    """An input that is no image, or cannot be handled; the message is one line."""


def read_image(path: str | os.PathLike) -> UInt8[np.ndarray, "h w 3"]:
    """Reads any image as RGB, upright.

    EXIF rotation is applied; grey and palette images become RGB; 16-bit ones keep their high 8 bits;
    transparency is dropped (the colour beneath it counts); of animations and many-page files the first
    picture is taken.

    Raises:
        Unreadable: no image, cut short, of floats, or of so many pixels (Pillow's limit, 179 million) that
            it may be made to exhaust memory.
    """
    try:
        with Image.open(path) as image:
            if image.mode == "F":
                raise Unreadable("pixels are floats: want 8 or 16 bits")
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):
                wide = np.clip(np.asarray(image, np.int64), 0, 65_535)
                image = Image.fromarray((wide >> 8).astype(np.uint8))
            return np.asarray(image.convert("RGB"))
    except Unreadable:
        raise
    except (
        Exception
    ) as error:  # decoders raise anything on bad bytes: OSError, SyntaxError, struct.error, ...
        reason = " ".join(str(error).split()).replace(f" {str(path)!r}", "")
        raise Unreadable(f"{reason or type(error).__name__}") from error


def find_images(inputs: str, output: Path) -> list[Path]:
    """The files that `inputs` (an image, a folder or a glob) stands for, sorted, outputs left out.

    Raises:
        UserError: nothing there.
    """
    path = Path(inputs).expanduser()
    made = [(output / name).resolve() for name in ("masks", "overlays")]
    if path.is_dir():
        found, what = path.iterdir(), "the folder holds no image"
    elif path.exists():
        found, what = [path], "no image"
    elif glob.has_magic(inputs):
        found, what = map(Path, glob.glob(str(path), recursive=True)), "no image matches"  # noqa: PTH207 (absolute globs)
    else:
        raise UserError(f"--input={inputs}: no such file or folder")
    files = [
        file
        for file in found
        if file == path
        or (file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and not file.is_dir())
    ]
    kept = sorted(file for file in files if file.resolve().parent not in made)
    if files and not kept:
        raise UserError(
            f"--input={inputs}: these are outputs within --output={output}; choose another output"
        )
    if not kept:
        raise UserError(f"--input={inputs}: {what} ({', '.join(SUFFIXES)})")
    return kept


def _plan(sources: Sequence[Path], output: Path, overwrite: bool) -> list[_Job]:
    names = _names(sources)
    jobs = [
        _Job(source, output / "masks" / f"{name}.png", output / "overlays" / f"{name}.jpg")
        for source, name in zip(sources, names, strict=True)
    ]
    taken = {source.resolve() for source in sources}
    targets = [path for job in jobs for path in (job.mask, job.overlay)]
    for target in targets:
        if target.resolve() in taken:
            raise UserError(f"--output={output}: {target} is an input; choose another output")
    present = [target for target in targets if target.exists()]
    if present and not overwrite:
        more = f" (and {len(present) - 1} more)" if len(present) > 1 else ""
        raise UserError(f"{present[0]} exists{more}: choose another --output, or pass --overwrite")
    return jobs


def _names(sources: Sequence[Path]) -> list[str]:
    """A name for each source, no two alike even where upper and lower case are one: its stem if it can be."""
    stems = Counter(source.stem.casefold() for source in sources)
    taken = {stem for stem, times in stems.items() if times == 1}
    names = []
    for source in sources:
        name = source.stem
        if stems[name.casefold()] > 1:
            base = f"{source.stem}_{source.suffix[1:]}"
            name, number = base, 1
            while name.casefold() in taken:
                number += 1
                name = f"{base}_{number}"
            taken.add(name.casefold())
        names.append(name)
    return names


def _read_ahead(jobs: Sequence[_Job]) -> Iterator[tuple[_Job, np.ndarray | Unreadable]]:
    """Each job with its image, or with what is wrong with it; the next one is read meanwhile."""

    def read(job: _Job) -> np.ndarray | Unreadable:
        try:
            return read_image(job.source)
        except Unreadable as error:
            return error

    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = pool.submit(read, jobs[0])
        for job, following in zip(jobs, [*jobs[1:], None], strict=True):
            image = coming.result()
            if following is not None:
                coming = pool.submit(read, following)
            yield job, image


def _fit(size: Size, input_scale: float, max_side: int) -> tuple[Size, Size]:
    """The sizes of an image for the model and of its mask before that is enlarged to the image's own."""
    scale = augment.as_fraction(input_scale)
    limit = Fraction(max_side, max(*size, max_side))
    return augment.scaled_size(size, min(scale, limit)), augment.scaled_size(size, limit)


def _canvases(sources: Sequence[Path], fit: Callable[[Size], tuple[Size, Size]], geometry: str) -> list[Size]:
    """A canvas for each image, as evaluation would choose it: few shapes, planned from the files' headers."""
    seen = []
    for source in sources:
        try:
            with Image.open(source) as image:
                turned = image.getexif().get(_ORIENTATION, 1) >= 5
                size = (image.width, image.height) if turned else (image.height, image.width)
        except Exception:  # read_image will say what is wrong
            size = (1, 1)
        seen.append(fit(size)[0])
    canvases = seen.copy()
    for canvas, (index,) in buckets.plan(seen, 1, Fraction(1), geometry):
        canvases[index] = canvas.image
    return canvases


def _predict_one(
    predict_fn: PredictFn,
    image: UInt8[np.ndarray, "h w 3"],
    fit: Callable[[Size], tuple[Size, Size]],
    canvas: Size,
    mean_pixel: np.ndarray,
    input_scale: float,
) -> tuple[UInt8[np.ndarray, "h w"], str]:
    """The mask of one image, of its size, and a note on what was done to it."""
    size = image.shape[:2]
    seen, target = fit(size)
    if seen == augment.scaled_size(size, augment.as_fraction(input_scale)):
        image = augment.resize_image(image, input_scale)
    else:
        image = cv2.resize(image, seen[::-1], interpolation=cv2.INTER_AREA)
    canvas = tuple(map(max, canvas, seen))  # should a header have told another size than the picture has
    try:
        mask = predict_fn(augment.pad_image(image, canvas, mean_pixel)[None], seen, target)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise Unreadable(f"{size[1]}x{size[0]} pixels: not enough device memory") from error
    if target == size:
        return mask, ""
    mask = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return mask, f"  (predicted at {target[1]}x{target[0]}, enlarged to {size[1]}x{size[0]})"


def _shares(mask: np.ndarray, classes: Sequence[str], most: int = 3) -> str:
    counts = np.bincount(mask.ravel(), minlength=len(classes))[: len(classes)]
    largest = [k for k in np.argsort(-counts, kind="stable")[:most] if counts[k]]
    return ", ".join(f"{classes[k]} {counts[k] / mask.size:.0%}" for k in largest)
