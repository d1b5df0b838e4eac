"""What every backbone offers to the rest of the system."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn


class WeightTarget(NamedTuple):
    """Where a tensor of a weight file goes, within the backbone.

    `collection` is `params` or `batch_stats`; `path` the keys below the backbone. A `kernel` of a
    convolution comes as `[out, in, k, k]`; everything else has its target's shape.
    """

    collection: str
    path: tuple[str, ...]


class Backbone(NamedTuple):
    """A registry entry.

    Attributes:
        build: `(output_stride, multi_grid, decay, dtype) -> nn.Module`, whose call takes normalised images
            `[B, H, W, 3]` and `train`, and gives the pyramid `{4, 8, 16, 32: [B, h, w, c]}`. Keys name the
            level; dilation changes the spatial stride, not the key.
        channels: of each level.
        normalization: mean and standard deviation of RGB 0-255 that the weights expect.
        weight_targets: every tensor of a source file by its name there, and where it goes.
        left_out: `(name) -> bool`, whether a source tensor has no use here by design (its classifier).
    """

    build: Callable[..., nn.Module]
    channels: dict[int, int]
    normalization: tuple[tuple[float, ...], tuple[float, ...]]
    weight_targets: Callable[[], dict[str, WeightTarget]]
    left_out: Callable[[str], bool]
