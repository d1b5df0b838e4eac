"""What turns images into logits and masks: scales, mirror images and sliding windows.

A *view* of an image is one scale of it, as it is or mirrored. The model gives each view's logits at its
output stride, of the whole or by windows; they are sampled at the label's own pixels and averaged there, in
float32, a block of rows at a time: of a mask no more logits than a block's are held at the pixels. Evaluation
and prediction both come through here.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float32, Int, Shaped, UInt8
from ml_collections import ConfigDict

from hfgd_jax.data import augment
from hfgd_jax.geometry import Geometry, feature_size, grid_size
from hfgd_jax.inference import sliding

BLOCK = 2**22  # float32 logits that are held at the pixels at once

Variables = Any  # {"params": ..., "batch_stats": ...}
View = Mapping[str, Any]  # `image` uint8 [b, H, W, 3], `image_size` int32 [b, 2]
Size = tuple[int, int]  # height, width
# Of averaged logits `[b, rows, width, k]` and of rows of planes `[b, height, width]`: a tree of arrays
# `[b, rows, width, ...]`.
OfRows = Callable[..., Any]


def mask_of(logits: Float[Array, "b h w k"]) -> UInt8[Array, "b h w"]:
    """Train ids, the classes with the largest logits."""
    return jnp.argmax(logits, -1).astype(jnp.uint8)


def _unchanged(logits: Array) -> Array:
    return logits


def logits_at_label(
    logits: Float[Array, "b h w k"],
    image_size: Int[Array, "b 2"],
    label_size: Int[Array, "b 2"],
    canvas: Size,
    *,
    output_stride: int,
    geometry: Geometry,
    mirrored: bool = False,
    first: Int[Array, ""] | int = 0,
) -> Float[Array, "b height width k"]:
    """Bilinear samples of output-stride logits at every pixel of labels of their own size, or at some rows.

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
        first: the label's row that is the first of the result.
    """
    for axis in (0, 1):
        out = jnp.arange(canvas[axis]) + (first if axis == 0 else 0)
        out = out.astype(jnp.float32)
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
    # Not by a gather: XLA may compute a position twice, with other rounding, and a neighbour's index and
    # weight then disagree. These weights are continuous in the position.
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

        self._apply = jax.jit(
            lambda variables, images: model.apply(variables, images, train=False, branch=branch).logits
        )
        self._mirror = jax.jit(mirror)
        self._in_rows = jax.jit(self._of_all_rows, static_argnums=(0, 1))
        self._cut = jax.jit(sliding.cut, static_argnums=(3, 4))
        self._place = jax.jit(sliding.add_window, donate_argnums=0, static_argnums=(4, 5, 6, 7))
        self._average = jax.jit(sliding.average, donate_argnums=0, static_argnums=(2, 3, 4, 5, 6))

    def each(
        self,
        function: OfRows,
        variables: Variables,
        views: Sequence[View],
        label_size: Int[np.ndarray | Array, "b 2"],
        canvas: Size,
        *planes: Shaped[np.ndarray | Array, "b height width"],
    ) -> Any:
        """What a function of each pixel's averaged logits gives, at the label's own pixels.

        Args:
            function: of the logits and of `planes`, rows of them at a time; the same object for the same
                function, which is compiled once.
            variables: `params` and `batch_stats`.
            views: for each of `scales` the `image`, uint8 RGB padded at the bottom and right to an on-grid
                canvas, and `image_size`, int32 `[b, 2]`, height and width of the image proper. Mirror
                images are made here.
            label_size: height and width of the label proper within `canvas`.
            canvas: height and width of the result; what lies beyond `label_size` has no meaning.
            planes: whatever else the function wants.

        Returns:
            Its results for all rows: a tree of arrays `[b, height, width, ...]`.
        """
        maps = []
        for view, mirrored in itertools.product(views, self._mirrors):
            image, size = view["image"], view["image_size"]
            logits = self._maps(variables, self._mirror(image, size) if mirrored else image, size)
            maps.append((logits, jnp.asarray(size)))
        return self._in_rows(function, tuple(canvas), maps, jnp.asarray(label_size), planes)

    def logits(
        self,
        variables: Variables,
        views: Sequence[View],
        label_size: Int[np.ndarray | Array, "b 2"],
        canvas: Size,
    ) -> Float32[Array, "b height width k"]:
        """The average of all views' logits (arguments as of `each`)."""
        return self.each(_unchanged, variables, views, label_size, canvas)

    def masks(
        self,
        variables: Variables,
        views: Sequence[View],
        label_size: Int[np.ndarray | Array, "b 2"],
        canvas: Size,
    ) -> UInt8[Array, "b height width"]:
        """Train ids, the classes with the largest averaged logits (arguments as of `each`)."""
        return self.each(mask_of, variables, views, label_size, canvas)

    def probabilities(
        self,
        variables: Variables,
        views: Sequence[View],
        label_size: Int[np.ndarray | Array, "b 2"],
        canvas: Size,
    ) -> Float32[Array, "b height width k"]:
        """The softmax over classes of the averaged logits (arguments as of `each`)."""
        return self.each(jax.nn.softmax, variables, views, label_size, canvas)

    def _of_all_rows(
        self, function: OfRows, canvas: Size, maps: list, label_size: Array, planes: tuple[Array, ...]
    ) -> Any:
        (height, width), (batch, *_, classes) = canvas, maps[0][0].shape
        rows = min(height, max(1, BLOCK // (batch * width * classes)))
        count = -(-height // rows)
        below = ((0, 0), (0, count * rows - height), (0, 0))
        planes = tuple(jnp.pad(plane, below) for plane in planes)

        def of_block(number: Array) -> Any:
            first, total = number * rows, jnp.float32(0)
            for (logits, size), mirrored in zip(maps, itertools.cycle(self._mirrors), strict=False):
                total += logits_at_label(
                    logits,
                    size,
                    label_size,
                    (rows, width),
                    output_stride=self._output_stride,
                    geometry=self.geometry,
                    mirrored=mirrored,
                    first=first,
                )
            parts = (jax.lax.dynamic_slice_in_dim(plane, first, rows, axis=1) for plane in planes)
            return function(total / len(maps), *parts)

        def joined(blocks: Array) -> Array:
            whole = jnp.moveaxis(blocks, 0, 1).reshape(batch, count * rows, *blocks.shape[3:])
            return whole[:, :height]

        return jax.tree.map(joined, jax.lax.map(of_block, jnp.arange(count)))

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
