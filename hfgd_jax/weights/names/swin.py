"""How timm, torchvision, transformers and the authors name the tensors of a Swin Transformer."""

from functools import partial
from typing import NamedTuple

from hfgd_jax.models.backbones.swin import VARIANTS
from hfgd_jax.weights.names.base import Naming, WeightTarget, layer_targets, level_norm_targets


class PartNames(NamedTuple):
    """How a project names the parts of the network.

    A convolution, dense layer or norm is given without its `.weight` and `.bias`, the parts of a block
    without the block. `{s}` is the stage from 0, `{stage}` from 1, `{before}` the stage before, `{b}` the
    block; torchvision counts mergings (`{even}`) and stages (`{odd}`) together.
    """

    stem: str
    stem_norm: str
    merge: str  # holds `norm` and `reduction`; of the stage that it leads to
    block: str
    norm1: str
    qkv: tuple[str, ...]  # one dense layer, or three
    position_bias: str
    proj: str
    norm2: str
    fc1: str
    fc2: str
    left_out: tuple[str, ...] = ("head.", "norm.")  # beginnings of the classifier's names
    prefixes: tuple[str, ...] = ("",)
    level_norm: str = ""


_TIMM = PartNames(
    stem="patch_embed.proj",
    stem_norm="patch_embed.norm",
    merge="layers.{s}.downsample",
    block="layers.{s}.blocks.{b}",
    norm1="norm1",
    qkv=("attn.qkv",),
    position_bias="attn.relative_position_bias_table",
    proj="attn.proj",
    norm2="norm2",
    fc1="mlp.fc1",
    fc2="mlp.fc2",
    prefixes=("", "model."),
)
TABLES = {
    "timm": _TIMM,
    "torchvision": _TIMM._replace(
        stem="features.0.0",
        stem_norm="features.0.2",
        merge="features.{even}",
        block="features.{odd}.{b}",
        fc1="mlp.0",
        fc2="mlp.3",
        prefixes=("",),
    ),
    "transformers": PartNames(
        stem="embeddings.patch_embeddings.projection",
        stem_norm="embeddings.norm",
        merge="encoder.layers.{before}.downsample",
        block="encoder.layers.{s}.blocks.{b}",
        norm1="layernorm_before",
        qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
        position_bias="attention.self.relative_position_bias_table",
        proj="attention.output.dense",
        norm2="layernorm_after",
        fc1="intermediate.dense",
        fc2="output.dense",
        left_out=("classifier.", "layernorm.", "swin.layernorm.", "embeddings.mask_token"),
        prefixes=("", "swin.", "backbone."),
        level_norm="hidden_states_norms.stage{stage}",
    ),
    "microsoft": _TIMM._replace(
        merge="layers.{before}.downsample", prefixes=("", "backbone."), level_norm="norm{s}"
    ),
}


def namings(name: str) -> tuple[Naming, ...]:
    """The namings of its weight files, timm's first.

    timm and torchvision have no norms of the levels: these are not in their files and keep their initial
    values. timm's files of before 2023 follow the authors' names (`microsoft`), which count a merging to the
    stage before it. transformers' names are those of saved files, which differ from those in memory.

    Args:
        name: a key of `VARIANTS`.
    """
    return tuple(
        Naming(
            source,
            _targets(parts, VARIANTS[name].depths),
            partial(_left_out, parts.left_out),
            parts.prefixes,
            frozenset(level_norm_targets(parts.level_norm)),
        )
        for source, parts in TABLES.items()
    )


def _targets(parts: PartNames, depths: tuple[int, ...]) -> dict[str, WeightTarget]:
    table = layer_targets(parts.stem, ("stem",), "conv") | layer_targets(parts.stem_norm, ("stem_norm",))
    for s, depth in enumerate(depths):
        if s > 0:
            source, here = parts.merge.format(s=s, before=s - 1, even=2 * s), f"merge{s + 1}"
            table |= layer_targets(f"{source}.norm", (f"{here}_norm",))
            table[f"{source}.reduction.weight"] = WeightTarget("params", (here, "kernel"), "linear")
        for b in range(depth):
            source, here = parts.block.format(s=s, b=b, odd=2 * s + 1), f"stage{s + 1}_{b}"
            for norm in ("norm1", "norm2"):
                table |= layer_targets(f"{source}.{getattr(parts, norm)}", (here, norm))
            for dense in ("proj", "fc1", "fc2"):
                table |= layer_targets(f"{source}.{getattr(parts, dense)}", (here, dense), "linear")
            for i, part in enumerate(parts.qkv):
                table |= layer_targets(f"{source}.{part}", (here, "qkv"), "linear", (i, len(parts.qkv)))
            bias = WeightTarget("params", (here, "position_bias"), "position_bias")
            table[f"{source}.{parts.position_bias}"] = bias
    return table | level_norm_targets(parts.level_norm)


def _left_out(beginnings: tuple[str, ...], name: str) -> bool:
    """The classifier, the norm before it and the token of masked images; buffers."""
    buffers = (".relative_position_index", ".attn_mask")
    return name.startswith(beginnings) or name.endswith(buffers)
