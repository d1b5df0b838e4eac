"""What turns images into logits and masks: scales, mirror images and sliding windows.

A *view* of an image is one scale of it, as it is or mirrored. The model gives each view's logits at its
output stride, of the whole or by windows; they are sampled at the label's own pixels and averaged there, in
float32. Evaluation and prediction both come through here.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float32, Int, UInt8
from ml_collections import ConfigDict

from hfgd_jax.data import augment
from hfgd_jax.geometry import Geometry, feature_size, grid_size
from hfgd_jax.inference import sliding

Variables = Any  # {"params": ..., "batch_stats": ...}
View = Mapping[str, Any]  # `image` uint8 [b, H, W, 3], `image_size` int32 [b, 2]
Size = tuple[int, int]  # height, width


def logits_at_label(
    logits: Float[Array, "b h w k"],
    image_size: Int[Array, "b 2"],
    label_size: Int[Array, "b 2"],
    canvas: Size,
    *,
    output_stride: int,
    geometry: Geometry,
    mirrored: bool = False,
) -> Float[Array, "b height width k"]:
    """Bilinear samples of output-stride logits at every pixel of labels of their own size.

    One step instead of two (to the image's pixels, then to the label's), with sizes that may differ from
    example to example in one compiled shape. Image pixels lie on label pixels as the data's resizing lays
    them (centres of cells); logits lie on image pixels as `geometry` says. Where image and label have one
    size it equals `geometry.to_pixels`. Logits beyond the image's own grid are never read, so that the
    result does not depend on how far the image was padded.

    Args:
        logits: of the padded image, one every `output_stride` pixels of its grid.
        image_size: height and width of the image proper within the padded one.
        label_size: height and width of the label proper within `canvas`.
        canvas: height and width of the result; what lies beyond `label_size` has no meaning.
        output_stride: pixels of the image from one logit to the next.
        geometry: `align_corners` or `half_pixel`.
        mirrored: the image was mirrored (see `mirror`), the label was not.
    """
    for axis in (0, 1):
        out = jnp.arange(canvas[axis], dtype=jnp.float32)
        image, label = (size[:, axis, None].astype(jnp.float32) for size in (image_size, label_size))
        position = (out + 0.5) * image / label - 0.5  # pixel of the image
        if mirrored and axis == 1:
            position = image - 1 - position
        logits = sample(logits, axis, position, image, output_stride=output_stride, geometry=geometry)
    return logits


def sample(
    logits: Float[Array, "b h w k"],
    axis: Literal[0, 1],
    position: Float[Array, "b n"],
    image: Float[Array, "b 1"],
    *,
    output_stride: int,
    geometry: Geometry,
) -> Float[Array, "b ..."]:
    """Bilinear samples of output-stride logits along the height (axis 0) or the width (1).

    Args:
        logits: of the padded image, one every `output_stride` pixels of its grid.
        axis: the one that becomes n long.
        position: in pixels of the image.
        image: length of the image proper along the axis; logits beyond its own grid are never read.
        output_stride: pixels of the image from one logit to the next.
        geometry: `align_corners` or `half_pixel`.
    """
    if geometry == "align_corners":
        position = position / output_stride
        last = jnp.ceil((image - 1) / sliding.COARSEST) * (sliding.COARSEST // output_stride)
    else:
        position = (position + 0.5) / output_stride - 0.5
        last = jnp.ceil(image / sliding.COARSEST) * (sliding.COARSEST // output_stride) - 1
    position = jnp.clip(position, 0, last)
    weights = jnp.maximum(0.0, 1 - jnp.abs(position[..., None] - jnp.arange(logits.shape[1 + axis])))
    equation = "boh,bhwk->bowk" if axis == 0 else "bow,bhwk->bhok"
    return jnp.einsum(equation, weights, logits, precision=jax.lax.Precision.HIGHEST)


def mirror(images: UInt8[Array, "b H W 3"], size: Int[Array, "b 2"]) -> UInt8[Array, "b H W 3"]:
    """Mirrors each image within its own width; the padding stays at the right."""
    column, width = jnp.arange(images.shape[2]), size[:, 1, None]
    source = jnp.where(column < width, width - 1 - column, column)
    return jnp.take_along_axis(images, source[:, None, :, None], axis=2)


class Inference:
    """A model's logits and masks as `config.eval` wants them: of `eval.branch`, at its own output stride.

    `eval.window` is enlarged to the model's grid, and cut down to the canvas where that is smaller: an image
    smaller than a window is padded as it would be without windows. Its stride is `1 - eval.window_overlap`
    of the window, on multiples of 32, at least 32.

    Attributes:
        scales: of the images, `data.input_scale` times each of `eval.scales`.
        input_scale: `data.input_scale`.
        geometry: of the model's grid.
        window: `eval.window`, or None where the whole is seen at once.
        overlap: share of a window (and of a tile) that the next one covers too.
        shapes: batch, height and width of what the model was compiled for, so far.
    """

    def __init__(self, model: nn.Module, config: ConfigDict):
        self.geometry: Geometry = config.model.geometry
        self.input_scale = float(config.data.input_scale)
        self.scales = tuple(
            float(augment.as_fraction(self.input_scale * scale)) for scale in config.eval.scales
        )
        self.window = tuple(config.eval.window) if any(config.eval.window) else None
        self.overlap = float(config.eval.window_overlap)
        self.shapes: set[tuple[int, int, int]] = set()
        branch, of = config.eval.branch, config.model
        self._output_stride = of.output_stride if branch == "prediction" else of.backbone.output_stride
        self._mirrors = (False, True) if config.eval.flip else (False,)

        def add(total, maps, image_size, label_size, share, mirrored, canvas):
            pixels = share * logits_at_label(
                maps,
                image_size,
                label_size,
                canvas,
                output_stride=self._output_stride,
                geometry=self.geometry,
                mirrored=mirrored,
            )
            return pixels if total is None else total + pixels

        self._apply = jax.jit(
            lambda variables, images: model.apply(variables, images, train=False, branch=branch).logits
        )
        self._mirror = jax.jit(mirror)
        self._add = jax.jit(add, donate_argnums=0, static_argnums=(5, 6))
        self._argmax = jax.jit(lambda logits: jnp.argmax(logits, -1).astype(jnp.uint8))
        self._softmax = jax.jit(jax.nn.softmax, donate_argnums=0)
        self._cut = jax.jit(sliding.cut, static_argnums=(3, 4))
        self._place = jax.jit(sliding.add_window, donate_argnums=0, static_argnums=(4, 5, 6, 7))
        self._average = jax.jit(sliding.average, donate_argnums=0, static_argnums=(2, 3, 4, 5, 6))

    def logits(
        self,
        variables: Variables,
        views: Sequence[View],
        label_size: Int[np.ndarray | Array, "b 2"],
        canvas: Size,
    ) -> Float32[Array, "b height width k"]:
        """The average of all views' logits, at the label's own pixels.

        One sum of the result's size is held and one view at a time is added to it.

        Args:
            variables: `params` and `batch_stats`.
            views: for each of `scales` the `image`, uint8 RGB padded at the bottom and right to an on-grid
                canvas, and `image_size`, int32 `[b, 2]`, height and width of the image proper. Mirror
                images are made here.
            label_size: height and width of the label proper within `canvas`.
            canvas: height and width of the result; what lies beyond `label_size` has no meaning.
        """
        total, share = None, np.float32(1 / (len(views) * len(self._mirrors)))
        for view, mirrored in itertools.product(views, self._mirrors):
            image, size = view["image"], view["image_size"]
            maps = self._maps(variables, self._mirror(image, size) if mirrored else image, size)
            total = self._add(total, maps, size, label_size, share, mirrored, tuple(canvas))
        return total

    def masks(
        self,
        variables: Variables,
        views: Sequence[View],
        label_size: Int[np.ndarray | Array, "b 2"],
        canvas: Size,
    ) -> UInt8[Array, "b height width"]:
        """Train ids, the classes with the largest logits (see `logits`)."""
        return self._argmax(self.logits(variables, views, label_size, canvas))

    def probabilities(
        self,
        variables: Variables,
        views: Sequence[View],
        label_size: Int[np.ndarray | Array, "b 2"],
        canvas: Size,
    ) -> Float32[Array, "b height width k"]:
        """The softmax over classes of the averaged logits (see `logits`)."""
        return self._softmax(self.logits(variables, views, label_size, canvas))

    def _maps(self, variables: Variables, images: Any, size: Any) -> Float32[Array, "b h w k"]:
        """Logits at the output stride of the canvas, of the whole or averaged over windows."""
        canvas = tuple(images.shape[1:3])
        window, stride = self._windows(canvas)
        self.shapes.add((images.shape[0], *window))
        if window == canvas:
            return self._apply(variables, images)
        counts = tuple(map(sliding.window_count, canvas, window, stride))
        shape, covered = (feature_size(s, self._output_stride, self.geometry) for s in (canvas, window))
        total, size = None, jnp.asarray(size)
        for number in itertools.product(*map(range, counts)):
            number = np.array(number, np.int32)
            logits = self._apply(variables, self._cut(images, size, number, window, stride))
            total = self._place(total, logits, size, number, shape, window, stride, self._output_stride)
        return self._average(total, size, covered, counts, window, stride, self._output_stride)

    def _windows(self, canvas: Size) -> tuple[Size, Size]:
        """Size and stride of a canvas's windows."""
        if self.window is None:
            return canvas, canvas
        height, width = map(min, grid_size(self.window, self.geometry), canvas)
        step = sliding.COARSEST
        kept = (int(side * (1 - self.overlap) + 1e-6) // step * step for side in (height, width))
        stride_y, stride_x = (max(step, side) for side in kept)
        return (height, width), (stride_y, stride_x)
