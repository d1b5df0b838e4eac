"""Scores and predictions of a model: single scale, at the label's own resolution (spec 3)."""

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8
from ml_collections import ConfigDict

from hfgd_jax import metrics, sharding
from hfgd_jax.data import augment, pipeline
from hfgd_jax.data.source import Split
from hfgd_jax.geometry import grid_size
from hfgd_jax.progress import write_metrics
from hfgd_jax.signals import Stop
from hfgd_jax.system import load, open_data

Variables = Any  # {"params": ..., "batch_stats": ...}

# Counts are int32 on the device; they go to int64 on the host before a class pair can pass 2**31 pixels.
_FLUSH_PIXELS = 2**30


def logits_at_label(
    logits: Float[Array, "b h w k"],
    image_size: Int[Array, "b 2"],
    label_size: Int[Array, "b 2"],
    canvas: tuple[int, int],
    *,
    output_stride: int,
    geometry: str,
) -> Float[Array, "b height width k"]:
    """Bilinear samples of output-stride logits at every pixel of labels of their own size.

    One step instead of two (to the image's pixels, then to the label's), with sizes that may differ from
    example to example in one compiled shape. Image pixels lie on label pixels as the data's resizing lays
    them (centres of cells); logits lie on image pixels as `geometry` says. Where image and label have one
    size it equals `geometry.to_pixels`.

    Args:
        logits: of the padded image, one every `output_stride` pixels of its grid.
        image_size: height and width of the image proper within the padded one.
        label_size: height and width of the label proper within `canvas`.
        canvas: height and width of the result; what lies beyond `label_size` has no meaning.
        output_stride: pixels of the image from one logit to the next.
        geometry: `align_corners` or `half_pixel`.
    """
    for axis in (0, 1):
        out = jnp.arange(canvas[axis], dtype=jnp.float32)
        image, label = (size[:, axis, None].astype(jnp.float32) for size in (image_size, label_size))
        position = (out + 0.5) * image / label - 0.5  # pixel of the image
        if geometry == "align_corners":
            position = position / output_stride
        else:
            position = (position + 0.5) / output_stride - 0.5
        count = logits.shape[1 + axis]
        position = jnp.clip(position, 0, count - 1)
        weights = jnp.maximum(0, 1 - jnp.abs(position[..., None] - jnp.arange(count)))
        equation = "boh,bhwk->bowk" if axis == 0 else "bow,bhwk->bhok"
        logits = jnp.einsum(equation, weights, logits, precision=jax.lax.Precision.HIGHEST)
    return logits


class Evaluator:
    """The compiled evaluation of one model on one mesh; a new shape of batch compiles once."""

    def __init__(self, model: nn.Module, config: ConfigDict, mesh: Mesh):
        self.config, self.mesh = config, mesh
        geometry, stride = config.model.geometry, config.model.output_stride
        num_classes = config.data.num_classes

        def predict(variables, image, image_size, label_size, canvas):
            logits = model.apply(variables, image, train=False).logits
            pixels = logits_at_label(
                logits, image_size, label_size, canvas, output_stride=stride, geometry=geometry
            )
            return jnp.argmax(pixels, -1).astype(jnp.uint8)

        def count(variables, matrix, batch):
            label = batch["label"]
            predicted = predict(
                variables, batch["image"], batch["image_size"], batch["size"], label.shape[1:]
            )
            return matrix + metrics.confusion_matrix(label, predicted, num_classes)

        whole = sharding.replicated(mesh)
        self._predict = jax.jit(predict, static_argnums=4)
        self._count = jax.jit(count, donate_argnums=1, out_shardings=whole)
        self._zero = jax.jit(lambda: jnp.zeros((num_classes, num_classes), jnp.int32), out_shardings=whole)

    def confusion(
        self,
        variables: Variables,
        split: Split,
        mean_pixel: np.ndarray,
        should_stop: Callable[[], bool] = lambda: False,
        on_batch: Callable[[int], None] = lambda images: None,
    ) -> np.ndarray | None:
        """The confusion matrix `[K, K]` int64 of the whole split, each image once; None where stopped.

        Args:
            variables: `params` and `batch_stats` on the mesh.
            split: what to score.
            mean_pixel: `[3]` RGB 0-255, the padding.
            should_stop: asked before each batch.
            on_batch: told the number of images done.
        """
        batches = pipeline.eval_batches(
            split,
            batch_size=sharding.round_up_batch_size(self.config.eval.batch_size, self.mesh),
            mean_pixel=mean_pixel,
            input_scale=self.config.data.input_scale,
            geometry=self.config.model.geometry,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            threads=self.config.data.threads,
            skip_corrupt=self.config.data.skip_corrupt,
        )
        total = np.zeros((self.config.data.num_classes,) * 2, np.int64)
        matrix, pixels, images = self._zero(), 0, 0
        for batch in batches:
            if should_stop():
                return None
            images += int((batch["index"] >= 0).sum())
            arrays = {key: batch[key] for key in ("image", "label", "image_size", "size")}
            matrix = self._count(variables, matrix, sharding.global_batch(self.mesh, arrays))
            pixels += batch["label"].size * jax.process_count()
            if pixels > _FLUSH_PIXELS:
                total += np.asarray(matrix, np.int64)
                matrix, pixels = self._zero(), 0
            on_batch(images)
        return total + np.asarray(matrix, np.int64)

    def predict(
        self,
        variables: Variables,
        image: UInt8[np.ndarray, "1 H W 3"],
        image_size: tuple[int, int],
        out_size: tuple[int, int],
    ) -> UInt8[np.ndarray, "h w"]:
        """Train ids of one image.

        Args:
            variables: `params` and `batch_stats`.
            image: RGB, padded at the bottom and right.
            image_size: height and width of the image proper.
            out_size: height and width of the mask wanted.
        """
        canvas = tuple(-(-side // 128) * 128 for side in out_size)  # few shapes, hence few compilations
        sizes = (np.asarray([size], np.int32) for size in (image_size, out_size))
        mask = self._predict(variables, image, *sizes, canvas)
        return np.asarray(mask)[0, : out_size[0], : out_size[1]]

    def predict_picture(
        self, variables: Variables, picture: UInt8[np.ndarray, "h w 3"], mean_pixel: np.ndarray
    ) -> UInt8[np.ndarray, "h w"]:
        """Train ids of an RGB picture as it is stored: scaled and padded as in evaluation."""
        image = augment.resize_image(picture, self.config.data.input_scale)
        canvas = grid_size(image.shape[:2], self.config.model.geometry, 64)
        padded = augment.pad_image(image, canvas, mean_pixel)[None]
        return self.predict(variables, padded, image.shape[:2], picture.shape[:2])


def run(config: ConfigDict, workdir: str, checkpoint: str) -> int:
    """Scores a checkpoint (`latest`, `best` or a step) on `data.eval_split`; returns the exit code.

    Prints the table of classes and writes `WORKDIR/metrics.json`.
    """
    system, variables, step, _ = load(config, workdir, checkpoint)
    split = open_data(config, config.data.eval_split)
    evaluator = Evaluator(system.model, config, system.mesh)

    def report(images: int) -> None:
        print(f"\r\x1b[K{images}/{len(split)} images", end="", flush=True)

    on_batch = report if sys.stdout.isatty() else lambda images: None
    with Stop().listening() as stop:
        matrix = evaluator.confusion(variables, split, system.mean_pixel, stop, on_batch)
    if matrix is None:
        print(f"stopped by {stop.signal_name}; nothing was written")
        return stop.exit_code
    summary = metrics.summarize(matrix, split.table.classes)
    write_metrics(epath.Path(workdir), step, summary)
    if jax.process_index() == 0:
        print(("\r\x1b[K" if sys.stdout.isatty() else "") + metrics.table(matrix, split.table.classes))
        print(f"step {step}, {len(split)} images of {config.data.dataset}/{config.data.eval_split}")
        print(f"mIoU: {summary['mIoU'] or 0.0:.4f}")
    return 0
