"""Images in, masks and overlays out: files of any kind or a data set's split, whatever predicts."""

import contextlib
import dataclasses
import glob
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image, ImageOps

from hfgd_jax.data import image_files
from hfgd_jax.data.labels import LabelTable
from hfgd_jax.data.prepared import CorruptRecordError, Split
from hfgd_jax.errors import UserError, escaped
from hfgd_jax.inference import render
from hfgd_jax.runtime import storage

Size = tuple[int, int]  # height, width

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
RAW_ENDING = "_labelIds"  # of masks in raw ids, as Cityscapes names its own
_ORIENTATION = 0x0112  # EXIF; 5 and above lie on their side


@runtime_checkable
class Predictor(Protocol):
    """What predicts, such as `tiles.TiledPredictor`."""

    def plan(self, sizes: Sequence[Size]) -> None:
        """Takes the heights and widths of the images to come, as far as they are known."""

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> tuple[UInt8[np.ndarray, "h w"], int]:
        """The mask of an RGB image, train ids of its size, and the number of tiles it was made of."""


@dataclasses.dataclass(frozen=True)
class PredictReport:
    """What a run did."""

    masks: tuple[epath.Path, ...]  # files written, one an image
    skipped: tuple[str, ...]  # `FILE: reason`, one an input that could not be read
    stopped: bool  # before the last image, by request
    output: epath.Path

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
class Source:
    """An image to come.

    Attributes:
        name: what its outputs are called, if no other has that name.
        kind: what they are called after besides, where names are alike.
        title: what it is called in messages.
        size: its height and width without decoding it; (1, 1) where that is unknown.
        read: the image, uint8 RGB `[h, w, 3]`; raises Unreadable.
        path: the file, None where it is no file of its own.
    """

    name: str
    kind: str
    title: str
    size: Callable[[], Size]
    read: Callable[[], UInt8[np.ndarray, "h w 3"]]
    path: epath.Path | None = None


@dataclasses.dataclass(frozen=True)
class _Job:
    source: Source
    mask: epath.Path
    overlay: epath.Path


def run(
    predictor: Predictor,
    inputs: str | Split,
    output: epath.PathLike,
    *,
    table: LabelTable,
    ids: Literal["train", "raw"] = "train",
    alpha: float = 0.5,
    overwrite: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    log: Callable[[str], Any] = print,
) -> PredictReport:
    """Predicts every image of `inputs` into `OUTPUT/masks/NAME.png` and `OUTPUT/overlays/NAME.jpg`.

    A mask has its image's size (as shown: EXIF rotation is applied to files; a data set's images are taken
    as they are stored) and holds the train ids as an index PNG in the data set's colours, which
    `OUTPUT/overlays/legend.png` names. An input that cannot be read is reported, skipped, and counted
    in the report. A file appears whole or not at all.

    Args:
        predictor: gives the mask of an image.
        inputs: an image; a folder, whose images are taken without its subfolders; a glob (`**` for any
            depth); or a split of a data set, labelled or not, whose records' ids are the names. In folders
            and globs a file counts as an image by its suffix.
        output: folder, made where missing. Files within its `masks` and `overlays` are never inputs. Inputs
            and output may lie in a bucket.
        table: the classes, their colours and their raw ids.
        ids: `raw` writes what a benchmark's server takes instead: `OUTPUT/masks/NAME_labelIds.png`, a grey
            PNG of the data set's own label ids.
        alpha: weight of the colours in the overlays.
        overwrite: replace outputs that are already there; inputs are never replaced.
        should_stop: asked before each image.
        log: called with a line per image.

    Raises:
        UserError: no image to be found at `inputs`, outputs that exist, or an output folder that cannot be
            written or would put outputs over inputs.
    """
    output = storage.resolve(output, "--output")
    if isinstance(inputs, Split):
        sources = [_record(inputs, index) for index in range(len(inputs))]
        if not sources:
            raise UserError(f"--input=split:{inputs.split}: this split of {inputs.dataset!r} is empty")
    else:
        sources = [_file(path) for path in find_images(inputs, output)]
    jobs = _plan(sources, output, overwrite, RAW_ENDING if ids == "raw" else "")
    with _writing(output):
        (output / "masks").mkdir(parents=True, exist_ok=True)
        (output / "overlays").mkdir(exist_ok=True)
        _write_legend(output / "overlays" / "legend.png", table, overwrite)
    predictor.plan([source.size() for source in sources])
    masks, skipped, stopped = [], [], False
    for number, (job, image) in enumerate(_read_ahead(jobs), start=1):
        if stopped := should_stop():
            break
        head = f"[{number}/{len(jobs)}] {escaped(job.source.title)}"
        try:
            if isinstance(image, Unreadable):
                raise image
            mask, tiles = _predict_one(predictor, image)
        except Unreadable as error:
            skipped.append(f"{job.source.title}: {error}")
            log(f"{head}: skipped: {escaped(str(error))}")
            continue
        with _writing(output):
            render.write_image(job.overlay, render.overlay(image, mask, table.palette, alpha))
            if ids == "raw":
                render.write_ids(job.mask, table.to_raw_ids(mask))
            else:
                render.write_mask(job.mask, mask, table.palette)
        masks.append(job.mask)
        note = f"  (in {tiles} tiles)" if tiles > 1 else ""
        log(f"{head} -> {escaped(str(job.mask))}  {_shares(mask, table.classes)}{note}")
    return PredictReport(tuple(masks), tuple(skipped), stopped, output)


def _write_legend(path: epath.Path, table: LabelTable, overwrite: bool) -> None:
    image = render.legend(table.classes, table.palette, 960)
    if path.exists() and not overwrite:
        with contextlib.suppress(Unreadable):
            if np.array_equal(read_image(path), image):
                return
        raise UserError(
            f"{path} exists and is of other classes: choose another --output, or pass --overwrite"
        )
    render.write_image(path, image)


@contextlib.contextmanager
def _writing(output: epath.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"--output={output}: cannot write: {error}") from error


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


def read_image(path: epath.PathLike) -> UInt8[np.ndarray, "h w 3"]:
    """Reads any image as RGB, upright.

    EXIF rotation is applied; grey and palette images become RGB; 16-bit ones keep their high 8 bits;
    transparency is dropped (the colour beneath it counts); of animations and many-page files the first
    image is taken.

    Raises:
        Unreadable: no image, cut short, of floats, or of more pixels than `image_files.MAX_PIXELS`.
    """
    try:
        with epath.Path(path).open("rb") as file, image_files.opened(file) as image:
            image.load()
            return as_rgb(image)
    except Unreadable:
        raise
    except (
        Exception
    ) as error:  # decoders raise anything on bad bytes: OSError, SyntaxError, struct.error, ...
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
    files = [
        file
        for file in found
        if file == path
        or (file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and not file.is_dir())
    ]
    kept = sorted(file for file in files if os.path.dirname(storage.real(file)) not in made)  # noqa: PTH120
    if files and not kept:
        raise UserError(
            f"--input={inputs}: these are outputs within --output={output}; choose another output"
        )
    if not kept:
        raise UserError(f"--input={inputs}: {what} ({', '.join(SUFFIXES)})")
    return kept


def _matching(pattern: epath.Path) -> list[epath.Path]:
    text = str(pattern)
    if not storage.is_remote(pattern):
        return [epath.Path(file) for file in glob.glob(text, recursive=True)]  # noqa: PTH207 (absolute globs)
    if "**" in text:
        raise UserError(f"--input={text}: ** reads a whole bucket; want * for one folder")
    return list(pattern.parent.glob(pattern.name))


def _file(path: epath.Path) -> Source:
    def size() -> Size:
        try:
            with path.open("rb") as file, image_files.opened(file) as image:
                # Pillow has a TIFF's size as it is shown.
                turned = image.format != "TIFF" and image.getexif().get(_ORIENTATION, 1) >= 5
                return (image.width, image.height) if turned else (image.height, image.width)
        except Exception:  # read_image reports what is wrong
            return 1, 1

    return Source(path.stem, path.suffix[1:], str(path), size, lambda: read_image(path), path)


def _record(split: Split, index: int) -> Source:
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

    def read() -> np.ndarray:
        try:
            return split.example(index)["image"]
        except CorruptRecordError as error:
            raise Unreadable(str(error)) from error

    return Source(name, str(index), f"{title} ({name})", size, read)


def _plan(sources: Sequence[Source], output: epath.Path, overwrite: bool, ending: str) -> list[_Job]:
    names = _names(sources)
    jobs = [
        _Job(source, output / "masks" / f"{name}{ending}.png", output / "overlays" / f"{name}.jpg")
        for source, name in zip(sources, names, strict=True)
    ]
    taken = {storage.real(source.path) for source in sources if source.path}
    targets = [path for job in jobs for path in (job.mask, job.overlay)]
    for target in targets:
        if storage.real(target) in taken:
            raise UserError(f"--output={output}: {target} is an input; choose another output")
    present = [target for target in targets if target.exists()]
    if present and not overwrite:
        more = f" (and {len(present) - 1} more)" if len(present) > 1 else ""
        raise UserError(f"{present[0]} exists{more}: choose another --output, or pass --overwrite")
    return jobs


def _names(sources: Sequence[Source]) -> list[str]:
    """A name for each source, no two alike even where upper and lower case are one: its own if it can be."""
    owners = Counter(source.name.casefold() for source in sources)
    taken = {name for name, times in owners.items() if times == 1}
    names = []
    for source in sources:
        name = source.name
        if owners[name.casefold()] > 1:
            base = f"{source.name}_{source.kind}"
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
            return job.source.read()
        except Unreadable as error:
            return error

    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = pool.submit(read, jobs[0])
        for job, following in zip(jobs, [*jobs[1:], None], strict=True):
            image = coming.result()
            if following is not None:
                coming = pool.submit(read, following)
            yield job, image


def _predict_one(
    predictor: Predictor, image: UInt8[np.ndarray, "h w 3"]
) -> tuple[UInt8[np.ndarray, "h w"], int]:
    try:
        return predictor(image)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        height, width = image.shape[:2]
        raise Unreadable(f"{width}x{height} pixels: not enough device memory") from error


def _shares(mask: np.ndarray, classes: Sequence[str], most: int = 3) -> str:
    counts = np.bincount(mask.ravel(), minlength=len(classes))[: len(classes)]
    largest = [k for k in np.argsort(-counts, kind="stable")[:most] if counts[k]]
    return ", ".join(f"{classes[k]} {counts[k] / mask.size:.0%}" for k in largest)
