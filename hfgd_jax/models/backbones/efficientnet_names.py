"""How timm, transformers and efficientnet_pytorch name the tensors of an EfficientNet."""

from functools import partial
from typing import NamedTuple

from hfgd_jax.models.backbones.base import Naming, WeightTarget, layer_targets

LayerNames = tuple[str, str]  # of a convolution without bias, and of the norm after it


class _Names(NamedTuple):
    """How a project names the parts of the network, without `.weight` and `.bias`.

    Parts of a block are given without the block: `{s}` is the stage and `{b}` its block, `{n}` counts the
    blocks of all stages; all from 0.
    """

    stem: LayerNames
    block: str
    expand: LayerNames
    depthwise: LayerNames
    project: LayerNames
    squeeze: tuple[str, str]  # the two convolutions of squeeze-and-excitation
    head: LayerNames  # of the classifier's 1x1 convolution
    first: dict[str, LayerNames]  # parts of blocks that do not expand, where they are named otherwise
    left_out: tuple[str, ...]  # beginnings of the classifier's names
    prefixes: tuple[str, ...] = ("",)


_NAMES = {
    "timm": _Names(
        stem=("conv_stem", "bn1"),
        block="blocks.{s}.{b}",
        expand=("conv_pw", "bn1"),
        depthwise=("conv_dw", "bn2"),
        project=("conv_pwl", "bn3"),
        squeeze=("se.conv_reduce", "se.conv_expand"),
        head=("conv_head", "bn2"),
        first={"depthwise": ("conv_dw", "bn1"), "project": ("conv_pw", "bn2")},
        left_out=("classifier.",),
    ),
    "transformers": _Names(
        stem=("embeddings.convolution", "embeddings.batchnorm"),
        block="encoder.blocks.{n}",
        expand=("expansion.expand_conv", "expansion.expand_bn"),
        depthwise=("depthwise_conv.depthwise_conv", "depthwise_conv.depthwise_norm"),
        project=("projection.project_conv", "projection.project_bn"),
        squeeze=("squeeze_excite.reduce", "squeeze_excite.expand"),
        head=("encoder.top_conv", "encoder.top_bn"),
        first={},
        left_out=("classifier.",),
        prefixes=("efficientnet.", ""),
    ),
    "efficientnet_pytorch": _Names(
        stem=("_conv_stem", "_bn0"),
        block="_blocks.{n}",
        expand=("_expand_conv", "_bn0"),
        depthwise=("_depthwise_conv", "_bn1"),
        project=("_project_conv", "_bn2"),
        squeeze=("_se_reduce", "_se_expand"),
        head=("_conv_head", "_bn1"),
        first={},
        left_out=("_fc.",),
    ),
}


def namings(blocks: tuple[int, ...], lite: bool) -> tuple[Naming, ...]:
    """The names that weight files come in, timm's first.

    Args:
        blocks: of each stage, the first of which does not expand.
        lite: no squeeze-and-excitation, and no transformers' names, which has no Lite networks.
    """
    return tuple(
        Naming(source, _targets(names, blocks, lite), partial(_left_out, names.left_out), names.prefixes)
        for source, names in _NAMES.items()
        if not (lite and source == "transformers")
    )


def _left_out(beginnings: tuple[str, ...], name: str) -> bool:
    return name.startswith(beginnings) or name.endswith(".num_batches_tracked")


def _targets(names: _Names, blocks: tuple[int, ...], lite: bool) -> dict[str, WeightTarget]:
    table = _conv_and_norm("", names.stem, ("stem",)) | _conv_and_norm("", names.head, ("head",))
    places = [(s, b) for s, count in enumerate(blocks) for b in range(count)]
    for n, (s, b) in enumerate(places):
        source, here = names.block.format(s=s, b=b, n=n) + ".", f"stage{s}_{b}"
        parts = {"depthwise": names.depthwise, "project": names.project}
        parts |= {"expand": names.expand} if s else names.first
        for part, layer in parts.items():
            table |= _conv_and_norm(source, layer, (here, part))
        if not lite:
            for part, layer in zip(("se_reduce", "se_expand"), names.squeeze, strict=True):
                table |= layer_targets(source + layer, (here, part), "conv")
    return table


def _conv_and_norm(source: str, names: LayerNames, path: tuple[str, ...]) -> dict[str, WeightTarget]:
    """Of a convolution `path` and the norm after it, `path` with `_bn`."""
    conv, norm = (source + name for name in names)
    norm_path = (*path[:-1], f"{path[-1]}_bn")
    return {
        f"{conv}.weight": WeightTarget("params", (*path, "kernel"), "conv"),
        **layer_targets(norm, norm_path),
        f"{norm}.running_mean": WeightTarget("batch_stats", (*norm_path, "mean")),
        f"{norm}.running_var": WeightTarget("batch_stats", (*norm_path, "var")),
    }
