"""How timm, torchvision, transformers and the authors name the tensors of a ConvNeXt."""

from functools import partial
from typing import NamedTuple

from hfgd_jax.models.backbones.convnext import VARIANTS
from hfgd_jax.weights.names.base import Layout, Naming, WeightTarget, layer_targets, level_norm_targets


class PartNames(NamedTuple):
    """How a project names the parts of the network.

    A convolution, dense layer or norm is given without its `.weight` and `.bias`, the parts of a block
    without the block. `{s}` is the stage from 0, `{stage}` from 1, `{b}` the block; torchvision counts
    downsamplings (`{even}`) and stages (`{odd}`) together.
    """

    stem: str
    stem_norm: str
    downsample: str  # holds a norm `.0` and a convolution `.1`
    block: str
    depthwise: str
    norm: str
    expand: str
    project: str
    layer_scale: str
    left_out: tuple[str, ...]  # beginnings of the names of the classifier and the norm before it
    prefixes: tuple[str, ...] = ("",)
    scale_layout: Layout = "plain"
    dense_layout: Layout = "linear"
    level_norm: str = ""


TABLES = {
    "timm": PartNames(
        stem="stem.0",
        stem_norm="stem.1",
        downsample="stages.{s}.downsample",
        block="stages.{s}.blocks.{b}",
        depthwise="conv_dw",
        norm="norm",
        expand="mlp.fc1",
        project="mlp.fc2",
        layer_scale="gamma",
        left_out=("head.", "norm_pre."),
    ),
    "torchvision": PartNames(
        stem="features.0.0",
        stem_norm="features.0.1",
        downsample="features.{even}",
        block="features.{odd}.{b}",
        depthwise="block.0",
        norm="block.2",
        expand="block.3",
        project="block.5",
        layer_scale="layer_scale",
        left_out=("classifier.",),
        scale_layout="channel_scale",
    ),
    "transformers": PartNames(
        stem="embeddings.patch_embeddings",
        stem_norm="embeddings.layernorm",
        downsample="encoder.stages.{s}.downsampling_layer",
        block="encoder.stages.{s}.layers.{b}",
        depthwise="dwconv",
        norm="layernorm",
        expand="pwconv1",
        project="pwconv2",
        layer_scale="layer_scale_parameter",
        left_out=("layernorm.", "classifier."),
        prefixes=("convnext.", "backbone.", ""),
        level_norm="hidden_states_norms.stage{stage}",
    ),
    "facebook": PartNames(
        stem="downsample_layers.0.0",
        stem_norm="downsample_layers.0.1",
        downsample="downsample_layers.{s}",
        block="stages.{s}.{b}",
        depthwise="dwconv",
        norm="norm",
        expand="pwconv1",
        project="pwconv2",
        layer_scale="gamma",
        left_out=("norm.", "norms.3.", "head."),
        prefixes=("", "backbone."),
        level_norm="norm{s}",
    ),
    "transformers_dinov3": PartNames(
        stem="stages.0.downsample_layers.0",
        stem_norm="stages.0.downsample_layers.1",
        downsample="stages.{s}.downsample_layers",
        block="stages.{s}.layers.{b}",
        depthwise="depthwise_conv",
        norm="layer_norm",
        expand="pointwise_conv1",
        project="pointwise_conv2",
        layer_scale="gamma",
        left_out=("layer_norm.",),
        prefixes=("", "model."),
    ),
}


def namings(name: str) -> tuple[Naming, ...]:
    """The namings of its weight files, timm's first.

    timm and torchvision have no norms of the levels: these are not in their files and keep their initial
    values. timm's atto holds its dense layers as 1x1 convolutions.

    DINOv3's networks (Siméoni et al. 2025; ImageNet's mean and deviation) come in timm's names, in their
    authors' (`facebook`), and in names of their own in transformers (`transformers_dinov3`). Their only norm
    after the stages is one of the pooled feature and the last level; it is left out as a classifier's is, and
    as the backbones of timm and transformers do. The authors' files hold it twice, as `norm` and `norms.3`.

    Args:
        name: a key of `VARIANTS`.
    """
    tables = TABLES | ({"timm": TABLES["timm"]._replace(dense_layout="conv")} if name == "convnext_a" else {})
    return tuple(
        Naming(
            source,
            targets(parts, VARIANTS[name].depths),
            partial(_starts_with, parts.left_out),
            parts.prefixes,
            frozenset(level_norm_targets(parts.level_norm)),
        )
        for source, parts in tables.items()
    )


def targets(parts: PartNames, depths: tuple[int, ...]) -> dict[str, WeightTarget]:
    """The target of every tensor of a network of these depths, by the tensor's name."""
    table = layer_targets(parts.stem, ("stem",), "conv") | layer_targets(parts.stem_norm, ("stem_norm",))
    for s, depth in enumerate(depths):
        if s > 0:
            source, here = parts.downsample.format(s=s, even=2 * s), f"downsample{s + 1}"
            table |= layer_targets(f"{source}.0", (f"{here}_norm",))
            table |= layer_targets(f"{source}.1", (here,), "conv")
        for b in range(depth):
            source, here = parts.block.format(s=s, b=b, odd=2 * s + 1), f"stage{s + 1}_{b}"
            table |= layer_targets(f"{source}.{parts.depthwise}", (here, "depthwise"), "conv")
            table |= layer_targets(f"{source}.{parts.norm}", (here, "norm"))
            table |= layer_targets(f"{source}.{parts.expand}", (here, "expand"), parts.dense_layout)
            table |= layer_targets(f"{source}.{parts.project}", (here, "project"), parts.dense_layout)
            scale = WeightTarget("params", (here, "layer_scale"), parts.scale_layout)
            table[f"{source}.{parts.layer_scale}"] = scale
    return table | level_norm_targets(parts.level_norm)


def _starts_with(beginnings: tuple[str, ...], name: str) -> bool:
    return name.startswith(beginnings)
