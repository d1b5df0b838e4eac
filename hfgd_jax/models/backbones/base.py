"""The interface of the backbones, and the input normalisations that they are trained with."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn


class Backbone(NamedTuple):
    """A registry entry.

    Attributes:
        build: `(output_stride=, multi_grid=, expanded_levels=, drop_path=, scan_blocks=, remat=, bn=,
            dtype=) -> nn.Module`, all by keyword, whose call takes normalised images `[B, H, W, 3]` of any
            size and `train`, and gives the pyramid `{4, 8, 16, 32: [B, h, w, c]}`. Keys name the level;
            dilation changes the spatial stride, not the key. `config.validate` refuses what a family does not
            have; its `build` ignores it.
        channels: of each level (not of expanded ones).
        normalization: mean and standard deviation of RGB 0-255 that the weights expect.
        drop_path: stochastic depth's rate in the source's settings, of segmentation where it has some.
        epsilon: of the source's batch normalisations; 0 where there are none.
    """

    build: Callable[..., nn.Module]
    channels: dict[int, int]
    normalization: tuple[tuple[float, ...], tuple[float, ...]]
    drop_path: float = 0.0
    epsilon: float = 0.0


# Mean and standard deviation of RGB 0-255 by which input images are normalised.
IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
LITE = ((127.0,) * 3, (128.0,) * 3)  # EfficientNet-Lite, by its authors
HALF = ((127.5,) * 3, (127.5,) * 3)  # -1 to 1: AdvProp's EfficientNets, timm's `tf_efficientnet_lite*`
NORMALIZATIONS = {"imagenet": IMAGENET, "half": HALF, "lite": LITE}
