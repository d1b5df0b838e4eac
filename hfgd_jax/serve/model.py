"""A trained model for images of any size, with a bound on what is compiled for it."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from hfgd_jax.inference.tiles import Size, TiledPredictor


class BoundedPredictor:
    """A `TiledPredictor`; what was compiled for it is forgotten where it becomes too much.

    Sizes that are known when it starts have the canvases that `hfgd predict` takes for them, all others
    canvases of its `sides`: the mask of an image never depends on what came before it. Programs of a process
    are kept by JAX until it is told to forget all of them.

    Args:
        predictor: with `sides`.
        shapes: that are compiled at most.
    """

    def __init__(self, predictor: TiledPredictor, shapes: int):
        self._predictor, self._shapes = predictor, shapes
        self._compiled: set[Any] = set()

    def plan(self, sizes: Sequence[Size]) -> None:
        """Takes the heights and widths that are known; once, before any image."""
        self._predictor.plan(sizes)

    def __call__(self, image: UInt8[np.ndarray, "h w 3"]) -> tuple[UInt8[np.ndarray, "h w"], int]:
        """The mask of an RGB image, train ids of its size, and the number of tiles it was made of."""
        canvas = self._predictor.canvas(image.shape[:2])
        if canvas not in self._compiled and len(self._compiled) >= self._shapes:
            jax.clear_caches()
            self._compiled.clear()
        self._compiled.add(canvas)
        return self._predictor(image)

    def warm_up(self, size: Size) -> None:
        """Compiles for images of this height and width."""
        self(np.zeros((*size, 3), np.uint8))
