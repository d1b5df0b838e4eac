"""The Python API: train, evaluate, load a trained model, predict, build a network.

Each function is a few lines over the packages below; what they do is proved there. Not here: flags.
"""

import dataclasses
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, cast, overload

import jax
import numpy as np
from etils import epath
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict
from PIL import Image

from hfgd_jax import config as configuration
from hfgd_jax import models
from hfgd_jax.errors import UserError
from hfgd_jax.evaluation.evaluator import Counts, Evaluator
from hfgd_jax.export import bundle, hub, loader
from hfgd_jax.inference import inputs, render
from hfgd_jax.inference.tiles import TiledPredictor
from hfgd_jax.runs import saved_config, system
from hfgd_jax.training import loop
from hfgd_jax.weights.sources import HUB

ImageLike = str | Path | Image.Image | np.ndarray | jax.Array


@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no truth value
class Prediction:
    """What a model says of one image.

    Attributes:
        image: the image, uint8 RGB.
        mask: the class of each pixel, an index into `classes`.
        classes: the classes' names.
        palette: their colours, uint8 RGB.
    """

    image: UInt8[np.ndarray, "h w 3"]
    mask: UInt8[np.ndarray, "h w"]
    classes: tuple[str, ...]
    palette: UInt8[np.ndarray, "k 3"]
    _compute: Callable[[], Float[np.ndarray, "h w k"]] = dataclasses.field(repr=False)

    @property
    def probabilities(self) -> Float[np.ndarray, "h w k"]:
        """The classes' probabilities at each pixel, float32; computed anew at each use."""
        return self._compute()

    @property
    def shares(self) -> dict[str, float]:
        """The share of the image's pixels of each class that is in it, the largest first."""
        counts = np.bincount(self.mask.ravel(), minlength=len(self.classes))
        order = np.argsort(-counts, kind="stable")
        return {self.classes[k]: float(counts[k] / self.mask.size) for k in order if counts[k]}

    def overlay(self, alpha: float = 0.5) -> UInt8[np.ndarray, "h w 3"]:
        """The image with the classes' colours over it; `alpha` is their weight, 0 to 1."""
        return render.overlay(self.image, self.mask, self.palette, alpha)

    def save(self, path: epath.PathLike, kind: Literal["mask", "overlay"] = "mask") -> None:
        """Writes the mask as an index PNG in the classes' colours, or the overlay as PNG or JPEG.

        Args:
            path: of the file, which is replaced where it exists; folders are made.
            kind: what to write.
        """
        path = epath.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "mask":
            render.write_mask(path, self.mask, self.palette)
        else:
            render.write_image(path, self.overlay())


class Model:
    """A trained model: images in, predictions out.

    Attributes:
        classes: their names, in the order of the mask's values.
        palette: their colours, uint8 `[k, 3]`.
        source: where it was loaded from, and the checkpoint's step where it is a run's.
    """

    def __init__(
        self,
        classes: Sequence[str],
        palette: UInt8[np.ndarray, "k 3"],
        source: str,
        make_predictor: Callable[[tuple[float, ...] | None, bool | None], Any],
    ):
        self.classes, self.palette, self.source = tuple(classes), np.asarray(palette, np.uint8), source
        self._make_predictor = make_predictor
        self._predictors: dict[tuple, Any] = {}

    def __repr__(self) -> str:
        return f"Model({self.source!r}, {len(self.classes)} classes)"

    @overload
    def __call__(
        self, images: ImageLike, *, scales: Sequence[float] | None = ..., flip: bool | None = ...
    ) -> Prediction: ...

    @overload
    def __call__(
        self,
        images: list[Any] | tuple[Any, ...],
        *,
        scales: Sequence[float] | None = ...,
        flip: bool | None = ...,
    ) -> list[Prediction]: ...

    def __call__(self, images, *, scales=None, flip=None):
        """Predicts an image, or each of a list.

        Args:
            images: a path (local or `gs://`), a Pillow image, or an array, uint8 `[h, w, 3]` RGB or `[h, w]`
                grey, of any size; or a list of such. Files and Pillow images are turned upright (EXIF).
            scales: relative sizes whose logits are averaged; None: the run's `eval.scales`.
            flip: whether mirror images are averaged in; None: the run's `eval.flip`.

        Raises:
            UserError: an image that cannot be read, or scales and flip that a bundle does not have.
        """
        key = (None if scales is None else tuple(map(float, scales)), flip)
        if key not in self._predictors:
            self._predictors[key] = self._make_predictor(*key)
        predictor = self._predictors[key]
        if not isinstance(images, list | tuple):
            return self._predict(predictor, _pixels(images))
        arrays = [_pixels(image) for image in images]
        predictor.plan([array.shape[:2] for array in arrays])
        return [self._predict(predictor, array) for array in arrays]

    def _predict(self, predictor: Any, image: np.ndarray) -> Prediction:
        mask = predictor(image)[0]
        return Prediction(image, mask, self.classes, self.palette, lambda: predictor.probabilities(image))


@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no truth value
class Scores:
    """The scores of an evaluation, in [0, 1]; printed, it is the table of classes.

    Attributes:
        step: of the checkpoint.
        images: how many were scored.
        summary: `mIoU`, `pixel_accuracy`, `mean_accuracy`, `per_class`, and more with `eval.details`.
        table: for people.
        matrix: the confusion matrix, int64 `[k, k]`; rows are labels, columns predictions.
    """

    step: int
    images: int
    summary: dict[str, Any]
    table: str = dataclasses.field(repr=False)
    matrix: np.ndarray = dataclasses.field(repr=False)

    @property
    def mean_iou(self) -> float:
        """Mean IoU over the classes that occur; 0 where none does."""
        return self.summary["mIoU"] or 0.0

    def __str__(self) -> str:
        return f"{self.table}\nstep {self.step}, {self.images} images, mIoU {self.mean_iou:.4f}"


def load(path: epath.PathLike, checkpoint: str = "best") -> Model:
    """A trained model, from a run directory or an exported bundle.

    Args:
        path: of the run directory (local or `gs://`) or the bundle; or `hf:OWNER/NAME[@REVISION]`, a bundle
            that `hfgd push` put on the Hugging Face hub.
        checkpoint: of a run: `best`, `latest` or a step. A bundle has one model.

    Raises:
        UserError: nothing of the kind there, no such checkpoint, or a file that was changed.

    >>> model = hfgd_jax.load(run)
    >>> prediction = model(np.zeros((60, 80, 3), np.uint8))
    >>> prediction.mask.shape, prediction.probabilities.shape
    ((60, 80), (60, 80, 9))
    >>> prediction.save(run / "mask.png")
    """
    if str(path).startswith(HUB):
        return _load_bundle(epath.Path(hub.fetch(str(path))))
    folder = epath.Path(path).expanduser()
    if (folder / bundle.MANIFEST).exists():
        return _load_bundle(folder)
    config = _config_of(folder)
    run = system.load(config, str(folder), str(checkpoint)).local()

    def make_predictor(scales: tuple[float, ...] | None, flip: bool | None) -> TiledPredictor:
        return run.predictor(_with_views(config, scales, flip))

    table = run.table
    return Model(table.classes, np.asarray(table.palette), f"{path}, step {run.step}", make_predictor)


def train(config: ConfigDict, workdir: epath.PathLike) -> None:
    """Trains, or goes on training, in a run directory: what the command line does with the same config.

    Ctrl-C and SIGTERM save first, then raise KeyboardInterrupt and SystemExit; called again, it goes on.

    Args:
        config: of the run (`hfgd_jax.configs.load`).
        workdir: the run directory, local or `gs://`.

    Raises:
        UserError: a config that is not valid, data that is missing, a directory of another run.

    >>> config = hfgd_jax.configs.load("demo", tiny=True)
    >>> config.data.data_dir = str(data)
    >>> hfgd_jax.train(config, run)  # doctest: +ELLIPSIS
    devices: ...
    """
    code = loop.run(config, str(workdir))
    if code == 128 + signal.SIGINT:
        raise KeyboardInterrupt
    if code:
        raise SystemExit(code)


def evaluate(
    run: epath.PathLike,
    *,
    split: str = "",
    checkpoint: str = "best",
    scales: Sequence[float] | None = None,
    flip: bool | None = None,
) -> Scores:
    """Scores a run's checkpoint on a split of its data set; writes nothing.

    Args:
        run: the run directory.
        split: of the data set; empty: the run's `data.eval_split`.
        checkpoint: `best`, `latest` or a step.
        scales, flip: as of `Model`.

    Raises:
        UserError: no run there, no such checkpoint or split, or a split without labels.

    >>> scores = hfgd_jax.evaluate(run)
    >>> 0 <= scores.mean_iou <= 1, scores.images
    (True, 8)
    """
    config = _with_views(_config_of(epath.Path(run).expanduser()), scales, flip)
    data = system.open_data(config, split or config.data.eval_split)
    if not data.labelled:
        raise UserError(f"split {data.split!r} of {data.dataset!r} has no labels: nothing to score")
    made, variables, step, table = system.load(config, str(run), str(checkpoint))
    table.check_order(data.table)
    evaluator = Evaluator(made.model, config, cast(Mesh, made.mesh))
    counts: Counts | None = evaluator.score(variables, data, made.mean_pixel)
    assert counts is not None  # it is asked to stop by nobody
    classes = data.table.classes
    return Scores(step, len(data), counts.summary(classes), counts.table(classes), counts.matrix)


def build_model(config: ConfigDict) -> nn.Module:
    """The network of a config, a Flax module that holds no parameters.

    Args:
        config: a run's.

    Returns:
        The `Segmenter`: `init(key, images, train=False)` gives its variables, `apply(variables, images,
        train=False).logits` float32 logits at the output stride; images are uint8 `[b, H, W, 3]` RGB.

    Raises:
        UserError: a config that is not valid.

    >>> config = hfgd_jax.configs.load("demo", tiny=True)
    >>> type(hfgd_jax.build_model(config)).__name__
    'Segmenter'
    """
    configuration.validate(config)
    return models.build_model(config.model, config.data.num_classes, config.train.dtype)


class _BundlePredictor:
    """A bundle's model with the methods of `TiledPredictor`."""

    def __init__(self, model: loader.Model):
        self._model = model

    def plan(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Nothing: sizes compile in steps of 32."""

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> tuple[UInt8[np.ndarray, "h w"]]:
        return (self._model(image[None])[0],)

    def probabilities(self, image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w k"]:
        return np.asarray(jax.nn.softmax(self._model(image[None], logits=True)[0]))


def _load_bundle(folder: epath.Path) -> Model:
    try:
        model = loader.load(Path(folder))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"bundle {folder}: {' '.join(str(error).split())}") from error

    def make_predictor(scales: tuple[float, ...] | None, flip: bool | None) -> _BundlePredictor:
        if scales or flip:
            raise UserError("a bundle predicts at one scale, without mirror images: load the run itself")
        return _BundlePredictor(model)

    return Model(model.classes, model.palette, str(folder), make_predictor)


def _config_of(folder: epath.Path) -> ConfigDict:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; want a run directory or an exported bundle")
    if not ((folder / "config.json").exists() or (folder / "checkpoints").exists()):
        raise UserError(f"{folder}: neither a run directory (config.json) nor a bundle ({bundle.MANIFEST})")
    return saved_config.get_config(str(folder))


def _with_views(config: ConfigDict, scales: Sequence[float] | None, flip: bool | None) -> ConfigDict:
    config = config.copy_and_resolve_references()
    if scales is not None:
        config.eval.scales = tuple(map(float, scales))
    if flip is not None:
        config.eval.flip = flip
    configuration.validate(config)
    return config


def _pixels(image: ImageLike) -> UInt8[np.ndarray, "h w 3"]:
    """An image of any kind as uint8 RGB."""
    try:
        if isinstance(image, Image.Image):
            return inputs.as_rgb(image)
        if isinstance(image, np.ndarray | jax.Array):
            array = np.asarray(image)
            if (
                array.dtype != np.uint8
                or not array.size
                or array.ndim < 2
                or array.shape[2:] not in ((), (3,))
            ):
                raise UserError(f"image {array.dtype} {array.shape}: want uint8 [h, w, 3] RGB or [h, w] grey")
            return np.ascontiguousarray(array if array.ndim == 3 else np.repeat(array[..., None], 3, -1))
        return inputs.read_image(image)
    except inputs.Unreadable as error:
        raise UserError(f"{image}: {error}") from error
