"""Images in, masks and overlays out: files of any kind or a data set's split, whatever predicts."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8

from hfgd_jax.data.labels import LabelTable
from hfgd_jax.data.prepared import Split
from hfgd_jax.errors import UserError, escaped
from hfgd_jax.inference import render
from hfgd_jax.inference.inputs import Size, Source, Unreadable, find_images, of_file, of_record, read_image
from hfgd_jax.runtime import storage
from hfgd_jax.runtime.progress import Doing

RAW_ENDING = "_labelIds"  # of masks in raw ids, as Cityscapes names its own


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
    only_class: str | None = None  # the one that every pixel of several images has

    @property
    def exit_code(self) -> int:
        """0, or 1 where an input was skipped."""
        return 1 if self.skipped else 0

    def summary(self) -> str:
        """What was written and where, in a line or two."""
        where = f"masks in {self.output / 'masks'}, overlays in {self.output / 'overlays'}"
        lines = [f"{len(self.masks)} {'image' if len(self.masks) == 1 else 'images'}: {where}"]
        if self.only_class is not None:
            lines.append(
                f"every pixel of every image is {self.only_class!r}: has the model learned the others?"
            )
        if self.skipped:
            lines.append(f"{len(self.skipped)} could not be read and were skipped (see above)")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Job:
    """An image to come and the files that it becomes."""

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
        UserError: as `plan`, or an output folder that cannot be written.
    """
    jobs = plan(inputs, output, ids=ids, overwrite=overwrite)
    output = storage.resolve(output, "--output")
    with _writing(output):
        _begin(output, table, overwrite)
    predictor.plan([job.source.size() for job in jobs])
    for line in _renamed(jobs):
        log(line)
    masks, skipped, stopped, seen = [], [], False, set()
    for number, (job, loaded) in enumerate(_read_ahead(jobs), start=1):
        if stopped := should_stop():
            break
        head = f"[{number}/{len(jobs)}] {escaped(job.source.title)}"
        try:
            if isinstance(loaded, Unreadable):
                raise loaded
            image, remark = loaded
            with Doing(f"predicting {escaped(job.source.title)}"):  # the first one of a size compiles
                mask, tiles = predict_one(predictor, image)
        except Unreadable as error:
            skipped.append(f"{job.source.title}: {error}")
            log(f"{head}: skipped: {escaped(str(error))}")
            continue
        with _writing(output):
            _write(job, image, mask, table, ids, alpha)
        masks.append(job.mask)
        seen |= set(np.unique(mask).tolist())
        notes = "; ".join(filter(None, (f"in {tiles} tiles" if tiles > 1 else "", remark)))
        shown = f"  ({notes})" if notes else ""
        log(f"{head} -> {escaped(str(job.mask))}  {_shares(mask, table.classes)}{shown}")
    only = table.classes[seen.pop()] if len(seen) == 1 < min(len(masks), len(table.classes)) else None
    return PredictReport(tuple(masks), tuple(skipped), stopped, output, only)


def _begin(output: epath.Path, table: LabelTable, overwrite: bool) -> None:
    """Makes the folders and the legend."""
    (output / "masks").mkdir(parents=True, exist_ok=True)
    (output / "overlays").mkdir(exist_ok=True)
    path = output / "overlays" / "legend.png"
    image = render.legend(table.classes, table.palette, 960)
    if path.exists() and not overwrite:
        with contextlib.suppress(Unreadable):
            if np.array_equal(read_image(path), image):
                return
        raise UserError(
            f"{path} exists and is of other classes: choose another --output, or pass --overwrite"
        )
    render.write_image(path, image)


def _write(job: Job, image: np.ndarray, mask: np.ndarray, table: LabelTable, ids: str, alpha: float) -> None:
    render.write_image(job.overlay, render.overlay(image, mask, table.palette, alpha))
    if ids == "raw":
        render.write_ids(job.mask, table.to_raw_ids(mask))
    else:
        render.write_mask(job.mask, mask, table.palette)


@contextlib.contextmanager
def _writing(output: epath.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"--output={output}: cannot write: {error}") from error


def plan(
    inputs: str | Split,
    output: epath.PathLike,
    *,
    ids: Literal["train", "raw"] = "train",
    overwrite: bool = False,
) -> list[Job]:
    """What `run` would read and write; it writes nothing, and needs no model.

    Args:
        inputs, output, ids, overwrite: as `run`.

    Raises:
        UserError: no image to be found at `inputs`, outputs that exist, or outputs that would replace inputs.
    """
    output = storage.resolve(output, "--output")
    if isinstance(inputs, Split):
        sources = [of_record(inputs, index) for index in range(len(inputs))]
        if not sources:
            raise UserError(f"--input=split:{inputs.split}: this split of {inputs.dataset!r} is empty")
    else:
        sources = [of_file(path) for path in find_images(inputs, output)]
    if output.exists() and not output.is_dir():
        raise UserError(f"--output={output}: is a file; want a folder")
    names, ending = _names(sources), RAW_ENDING if ids == "raw" else ""
    jobs = [
        Job(source, output / "masks" / f"{name}{ending}.png", output / "overlays" / f"{name}.jpg")
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


def _renamed(jobs: Sequence[Job]) -> Iterator[str]:
    """A line for each name that several inputs have, so that none of their outputs is called that."""
    alike: dict[str, list[str]] = {}
    for job in jobs:
        alike.setdefault(job.source.name.casefold(), []).append(job.overlay.stem)
    for given, names in alike.items():
        if len(names) > 1:
            more = ", ..." if len(names) > 4 else ""
            yield f"{len(names)} inputs are called {given!r}: their outputs are {', '.join(names[:4])}{more}"


def _read_ahead(
    jobs: Sequence[Job],
) -> Iterator[tuple[Job, tuple[np.ndarray, str] | Unreadable]]:
    """Each job with its image and the remark on it, or with what is wrong; the next is read meanwhile."""

    def read(job: Job) -> tuple[np.ndarray, str] | Unreadable:
        try:
            return job.source.read()
        except Unreadable as error:
            return error

    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = pool.submit(read, jobs[0])
        for job, following in zip(jobs, [*jobs[1:], None], strict=True):
            loaded = coming.result()
            if following is not None:
                coming = pool.submit(read, following)
            yield job, loaded


def predict_one(
    predictor: Predictor, image: UInt8[np.ndarray, "h w 3"]
) -> tuple[UInt8[np.ndarray, "h w"], int]:
    """The mask of an RGB image, uint8 train ids of its size, and the number of tiles it was made of.

    Raises:
        Unreadable: the device has not enough memory for it.
    """
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
