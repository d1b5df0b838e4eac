"""What a table of names consists of, and the parts that several families of networks share."""

from collections.abc import Callable
from typing import Literal, NamedTuple

Layout = Literal["plain", "conv", "linear", "channel_scale", "position_bias"]


class WeightTarget(NamedTuple):
    """The leaf that a tensor of a weight file belongs to, and the layout that it has in the file.

    Attributes:
        collection: `params` or `batch_stats`.
        path: the keys of the leaf below the backbone (of a whole model's table: below the collection).
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
        targets: the target of every tensor that has one here, by the tensor's name without prefix.
        left_out: `(name without prefix) -> bool`, whether a tensor has no use here by design (the
            classifier, torch's batch counters, index buffers).
        prefixes: what files of this naming put before all names of the backbone, the exported one first.
        optional: names that a file may lack, all of them together (norms of the pyramid's levels, which
            only segmentation models have); the parameters then keep their initial values.
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


def conv_and_norm_targets(
    conv: str, norm: str, conv_path: tuple[str, ...], norm_path: tuple[str, ...]
) -> dict[str, WeightTarget]:
    """A convolution without bias, and the batch normalisation after it with its running statistics.

    Args:
        conv, norm: the layers' names in a file, without `.weight` and so on.
        conv_path, norm_path: the keys of the layers here.
    """
    return {
        f"{conv}.weight": WeightTarget("params", (*conv_path, "kernel"), "conv"),
        **layer_targets(norm, norm_path),
        f"{norm}.running_mean": WeightTarget("batch_stats", (*norm_path, "mean")),
        f"{norm}.running_var": WeightTarget("batch_stats", (*norm_path, "var")),
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
