"""How timm, transformers and efficientnet_pytorch name the tensors of an EfficientNet."""

from functools import partial
from typing import NamedTuple

from hfgd_jax.models.backbones.efficientnet import is_lite, scaled_stages
from hfgd_jax.weights.names.base import Naming, WeightTarget, conv_and_norm_targets, layer_targets

LayerNames = tuple[str, str]  # of a convolution without bias, and of the norm after it


class PartNames(NamedTuple):
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


TABLES = {
    "timm": PartNames(
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
    "transformers": PartNames(
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
    "efficientnet_pytorch": PartNames(
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


def namings(name: str) -> tuple[Naming, ...]:
    """The namings of its weight files, timm's first; transformers has no Lite networks.

    Args:
        name: a key of `models.backbones.efficientnet.SCALES`.
    """
    return tuple(
        Naming(source, _targets(name, parts), partial(_left_out, parts.left_out), parts.prefixes)
        for source, parts in TABLES.items()
        if not (is_lite(name) and source == "transformers")
    )


def _left_out(beginnings: tuple[str, ...], name: str) -> bool:
    return name.startswith(beginnings) or name.endswith(".num_batches_tracked")


def _targets(name: str, parts: PartNames) -> dict[str, WeightTarget]:
    table = _conv_and_norm("", parts.stem, ("stem",)) | _conv_and_norm("", parts.head, ("head",))
    blocks = [(s, b) for s, stage in enumerate(scaled_stages(name)) for b in range(stage.blocks)]
    for n, (s, b) in enumerate(blocks):
        source, here = parts.block.format(s=s, b=b, n=n) + ".", f"stage{s}_{b}"
        layers = {"depthwise": parts.depthwise, "project": parts.project}
        layers |= {"expand": parts.expand} if s else parts.first  # the blocks of stage 0 do not expand
        for part, layer in layers.items():
            table |= _conv_and_norm(source, layer, (here, part))
        if not is_lite(name):
            for part, layer in zip(("se_reduce", "se_expand"), parts.squeeze, strict=True):
                table |= layer_targets(source + layer, (here, part), "conv")
    return table


def _conv_and_norm(source: str, layer: LayerNames, path: tuple[str, ...]) -> dict[str, WeightTarget]:
    """Of a convolution `path` and the norm after it, `path` with `_bn`."""
    conv, norm = (source + name for name in layer)
    return conv_and_norm_targets(conv, norm, path, (*path[:-1], f"{path[-1]}_bn"))
