"""What every backbone offers to the rest of the system."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import flax.linen as nn

Layout = Literal["plain", "conv", "linear", "channel_scale", "position_bias"]


class WeightTarget(NamedTuple):
    """Where a tensor of a weight file goes, within the backbone (or the model), and in which layout it comes.

    Attributes:
        collection: `params` or `batch_stats`.
        path: the keys below the backbone.
        layout: of the tensor in the file, against the leaf here:
            `plain`: the same shape;
            `conv`: `[out, in, k, k]` for `[k, k, in, out]`, or `[out, in, 1, 1]` for `[in, out]`;
            `linear`: `[out, in]` for `[in, out]`;
            `channel_scale`: `[c, 1, 1]` for `[c]`;
            `position_bias`: `[(2w - 1)^2, heads]`, the same here, resized where the window w differs.
        part: `(i, n)`: the tensor is the i-th of n equal parts of the leaf along its last axis (a fused
            query-key-value).
    """

    collection: str
    path: tuple[str, ...]
    layout: Layout = "plain"
    part: tuple[int, int] = (0, 1)


class Naming(NamedTuple):
    """How one project names the tensors of a network; read forwards to import, backwards to export.

    Attributes:
        name: `timm`, `torchvision`, `transformers` (`transformers_dinov3`: its other names for ConvNeXt), or
            the authors' own (`facebook`, `microsoft`).
        targets: every tensor that has a place here, by its name without prefix.
        left_out: `(name without prefix) -> bool`, whether a tensor has no use here by design (the
            classifier, torch's batch counters, index buffers).
        prefixes: what files of this naming put before all names of the backbone, the exported one first.
        optional: names that a file may lack, all of them together (norms of the pyramid's levels, which
            only segmentation models have); they then start fresh.
    """

    name: str
    targets: dict[str, WeightTarget]
    left_out: Callable[[str], bool]
    prefixes: tuple[str, ...] = ("",)
    optional: frozenset[str] = frozenset()


def layer_targets(
    source: str, path: tuple[str, ...], kernel: Layout | None = None, part: tuple[int, int] = (0, 1)
) -> dict[str, WeightTarget]:
    """Weight and bias of a convolution or dense layer, or of a norm where `kernel` has no layout.

    Args:
        source: the layer's name in a file, without `.weight` and `.bias`.
        path: the keys of the layer here.
        kernel: the weight's layout.
        part: as of `WeightTarget`.
    """
    leaf, layout = ("kernel", kernel) if kernel else ("scale", "plain")
    return {
        f"{source}.weight": WeightTarget("params", (*path, leaf), layout, part),
        f"{source}.bias": WeightTarget("params", (*path, "bias"), "plain", part),
    }


def level_norm_targets(pattern: str) -> dict[str, WeightTarget]:
    """The norms of the pyramid's levels, `norm_4` to `norm_32` here.

    Args:
        pattern: a format of the stage's number from 0, `{s}`, or from 1, `{stage}`; empty where the source
            has no such norms.
    """
    table: dict[str, WeightTarget] = {}
    for s in range(4 if pattern else 0):
        table |= layer_targets(pattern.format(s=s, stage=s + 1), (f"norm_{4 << s}",))
    return table


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
        namings: `() -> ` the namings that files of its weights come in, the exported default first.
        drop_path: stochastic depth's rate in the source's settings, of segmentation where it has some.
        epsilon: of the source's batch normalisations; 0 where there are none.
    """

    build: Callable[..., nn.Module]
    channels: dict[int, int]
    normalization: tuple[tuple[float, ...], tuple[float, ...]]
    namings: Callable[[], tuple[Naming, ...]]
    drop_path: float = 0.0
    epsilon: float = 0.0


# Mean and standard deviation of RGB 0-255 that networks are fed with.
IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
LITE = ((127.0,) * 3, (128.0,) * 3)  # EfficientNet-Lite, by its authors
HALF = ((127.5,) * 3, (127.5,) * 3)  # -1 to 1: AdvProp's EfficientNets, timm's `tf_efficientnet_lite*`
NORMALIZATIONS = {"imagenet": IMAGENET, "half": HALF, "lite": LITE}
