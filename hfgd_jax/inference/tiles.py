"""Images of any size in, masks out: a large one in tiles, whose size alone bounds the memory.

A tile is a part of the image with a margin that its neighbours cover too; each is predicted as an image of
its own (all scales, mirror images and windows) and gives the mask up to the middle of the overlap. Nothing of
the whole image's size but the image and its mask is ever held. Tiles are not averaged (reading): the
margin is thrown away, which needs no logits beyond the tile. They start where every scale keeps the grid of
the model's features, so that a convolutional model predicts, a receptive field away from a tile's border,
what it predicts for the whole.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from hfgd_jax.data import augment, canvases, pipeline
from hfgd_jax.inference import sliding
from hfgd_jax.inference.views import Inference, Variables

Size = tuple[int, int]  # height, width

MAX_SIDE = 2048  # pixels; an image with a longer side, as stored or as seen at scale 1, is cut into tiles
TILE = 1024  # pixels, as seen at scale 1: a tile's side where `eval.window` names none


class TiledMask(NamedTuple):
    """A mask of the image's size, uint8 train ids, and the number of tiles that it was made of."""

    mask: UInt8[np.ndarray, "h w"]
    tiles: int


class Span(NamedTuple):
    """A tile along one axis: it sees pixels `start` to `stop` and gives the mask from `first` to `last`."""

    start: int
    stop: int
    first: int
    last: int


class TiledPredictor:
    """Masks of single images; `plan` first where the sizes of many are known, and few shapes compile.

    Attributes:
        tile: height and width of a tile, at most, in the image's own pixels: `eval.window` or `TILE` as
            seen at scale 1, less what is needed for whole steps.
        max_side: a longer side is cut into tiles.
        sides: see `Args`.

    Args:
        inference, variables, mean_pixel, max_side: the model, and what a border is padded with.
        sides: what sides of canvases are rounded up to, ascending, where a size was not planned: its canvas
            then depends on the size alone. A side beyond the last has the canvas that `plan` would choose
            for it. Empty: a size that was not planned is planned when it comes.
    """

    def __init__(
        self,
        inference: Inference,
        variables: Variables,
        mean_pixel: Float[np.ndarray, "3"],
        max_side: int = MAX_SIDE,
        sides: Sequence[int] = (),
    ):
        self.inference, self.max_side, self.sides = inference, max_side, tuple(sides)
        self._variables, self._mean_pixel = variables, mean_pixel
        self._scales = [augment.as_fraction(scale) for scale in inference.scales]
        window = inference.window or (TILE, TILE)
        # A multiple of it is a multiple of 32 pixels at every scale p / q, hence on every feature's grid.
        aligned = sliding.COARSEST * math.lcm(*(scale.denominator for scale in self._scales))
        smallest = min(window) / inference.input_scale
        self._step = aligned if 2 * aligned <= smallest else sliding.COARSEST
        height, width = (
            max(2, int(side / inference.input_scale / self._step)) * self._step for side in window
        )
        self.tile = (height, width)
        self._canvases: dict[Size, canvases.Canvas] = {}

    def plan(self, sizes: Sequence[Size]) -> None:
        """Chooses the canvases for images of these heights and widths, as evaluation would."""
        seen = sorted({self._seen(size) for size in sizes})
        for canvas, (index,) in canvases.plan(seen, 1, self._scales, self.inference.geometry):
            self._canvases[seen[index]] = canvas

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> TiledMask:
        """The mask of an RGB image as it is stored, at its own size."""
        mask, tiles = np.empty(image.shape[:2], np.uint8), 0
        for rows, columns, part in self._parts(image, self.inference.masks):
            mask[rows, columns] = part
            tiles += 1
        return TiledMask(mask, tiles)

    def probabilities(self, image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w k"]:
        """Softmax of the averaged logits at every pixel of an RGB image: float32, K times its size."""
        out = None
        for rows, columns, part in self._parts(image, self.inference.probabilities):
            if out is None:
                out = np.empty((*image.shape[:2], part.shape[-1]), np.float32)
            out[rows, columns] = part
        return out

    def _parts(
        self, image: np.ndarray, function: Callable[..., Any]
    ) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """Rows, columns and what `function` (of `inference`) gives for them, tile by tile."""
        size = image.shape[:2]
        canvas = self.canvas(size)
        if not self._is_large(size):
            yield slice(None), slice(None), self._apply(function, image, canvas)
            return
        rows, columns = (
            spans(side, tile, self._step, self.inference.overlap)
            for side, tile in zip(size, self.tile, strict=True)
        )
        for y, x in itertools.product(rows, columns):
            part = self._apply(function, image[y.start : y.stop, x.start : x.stop], canvas)
            inner = part[y.first - y.start : y.last - y.start, x.first - x.start : x.last - x.start]
            yield slice(y.first, y.last), slice(x.first, x.last), inner

    def canvas(self, size: Size) -> canvases.Canvas:
        """What an image of this height and width, or each of its tiles, is padded to."""
        seen = self._seen(size)
        if self.sides and seen not in self._canvases:  # which is not kept: any number of sizes may come
            height, width = (min((s for s in self.sides if s >= side), default=side) for side in seen)
            ((canvas, _),) = canvases.plan([(height, width)], 1, self._scales, self.inference.geometry)
            return canvas
        if seen not in self._canvases:
            self.plan([size])
        return self._canvases[seen]

    def _is_large(self, size: Size) -> bool:
        return max(size) * max(1.0, self.inference.input_scale) > self.max_side

    def _seen(self, size: Size) -> Size:
        """What the model sees at once of an image, in the image's pixels."""
        if not self._is_large(size):
            return size
        height, width = (tile_side(*sides, self._step) for sides in zip(size, self.tile, strict=True))
        return height, width

    def _apply(self, function: Callable[..., Any], image: np.ndarray, canvas: canvases.Canvas) -> np.ndarray:
        views = pipeline.views(image, self.inference.scales, canvas, self._mean_pixel)
        views = [{key: value[None] for key, value in view.items()} for view in views]
        size = np.array([image.shape[:2]], np.int32)
        return np.asarray(function(self._variables, views, size, canvas.label))[0, : size[0, 0], : size[0, 1]]


def tile_side(length: int, tile: int, step: int) -> int:
    """What a tile sees along an axis: the largest side up to `tile` that leaves whole steps of the image.

    Tiles then start whole steps from either end, and keep the grid of a mirror image as well.
    """
    return length if length <= tile else tile - (tile - length) % step


def spans(length: int, tile: int, step: int, overlap: float) -> list[Span]:
    """The tiles along one axis, which together give each pixel once; all of one size (see `tile_side`).

    Args:
        length: of the image.
        tile: of a tile, at most.
        step: tiles start on its multiples.
        overlap: the share of a tile, at least, that the next one covers too; each gives half of it.
    """
    tile = tile_side(length, tile, step)
    stride = max(step, int(tile * (1 - overlap) + 1e-6) // step * step)
    starts = [*range(0, length - tile, stride), length - tile]
    middles = [start + (before + tile - start) // 2 for before, start in itertools.pairwise(starts)]
    firsts, lasts = [0, *middles], [*middles, length]
    return [Span(s, s + tile, first, last) for s, first, last in zip(starts, firsts, lasts, strict=True)]
