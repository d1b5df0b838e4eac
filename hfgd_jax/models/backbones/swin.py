"""Swin Transformer T, S, B and L (Liu et al., ICCV 2021), as segmentation models use it (spec 1.6).

Every stage pads its map to whole windows and shifts every second block's, whatever the map's size, and every
level has a LayerNorm of its own: mmsegmentation's Swin, and transformers' `SwinBackbone`. Classifiers differ
in one point: torchvision does not shift along an axis that one window covers, and timm and transformers'
`SwinModel` make the window as small as a smaller map (timm's `always_partition=True` is what is done here).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hfgd_jax.models.backbones.base import IMAGENET, Backbone, Naming, WeightTarget
from hfgd_jax.models.backbones.blocks import run_blocks
from hfgd_jax.models.backbones.stochastic import Drops, draw, drop_path, drop_path_rates
from hfgd_jax.models.backbones.windows import Windows, attend, pad_to_multiple, position_bias

PATCH = 4
MLP_RATIO = 4
EPSILON = 1e-5
DROP_PATH = 0.3  # of UPerNet with Swin in mmsegmentation and in the authors' segmentation code, all sizes
INIT = nn.initializers.truncated_normal(0.02)


class Variant(NamedTuple):
    """Blocks of each stage, channels of the first, heads of each stage, side of a window."""

    depths: tuple[int, ...]
    width: int
    heads: tuple[int, ...]
    window: int


VARIANTS = {
    "swin_t": Variant((2, 2, 6, 2), 96, (3, 6, 12, 24), 7),
    "swin_s": Variant((2, 2, 18, 2), 96, (3, 6, 12, 24), 7),
    "swin_b": Variant((2, 2, 18, 2), 128, (4, 8, 16, 32), 12),
    "swin_l": Variant((2, 2, 18, 2), 192, (6, 12, 24, 48), 12),
}


class Block(nn.Module):
    """Attention within windows, then an MLP, each on the normalised map and with a residual.

    Attributes:
        heads: divides the channels.
        window: side of a window.
        shift: of the windows' grid.
        dtype: of the computation and the result.
    """

    heads: int
    window: int
    shift: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], drops: Drops | None) -> Float[Array, "b h w c"]:
        c = x.shape[-1]
        dense, norm = partial(_dense, dtype=self.dtype), partial(_norm, dtype=self.dtype)
        windows = Windows(x.shape[1:3], self.window, self.shift)
        table = self.param("position_bias", INIT, ((2 * self.window - 1) ** 2, self.heads), jnp.float32)

        qkv = dense(3 * c, name="qkv")(windows.cut(norm(name="norm1")(x)))
        y = attend(qkv, position_bias(table, self.window), windows.regions())
        x = x + _drop(dense(c, name="proj")(windows.join(y)), drops, 0)

        y = nn.gelu(dense(MLP_RATIO * c, name="fc1")(norm(name="norm2")(x)), approximate=False)
        return x + _drop(dense(c, name="fc2")(y), drops, 1)


class PatchEmbedding(nn.Module):
    """A convolution of 4x4 patches, the last ones padded with zeros, as one matrix product.

    Attributes:
        features: output channels.
        dtype: of the computation and the result.
    """

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, images: Float[Array, "b H W c"]) -> Float[Array, "b h w features"]:
        c = images.shape[-1]
        kernel = self.param("kernel", INIT, (PATCH, PATCH, c, self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x = pad_to_multiple(images.astype(self.dtype), PATCH)
        b, height, width = x.shape[0], x.shape[1] // PATCH, x.shape[2] // PATCH
        x = x.reshape(b, height, PATCH, width, PATCH, c).swapaxes(2, 3).reshape(b, height, width, -1)
        return jnp.dot(x, kernel.reshape(-1, self.features).astype(self.dtype)) + bias.astype(self.dtype)


class Swin(nn.Module):
    """Normalised images `[B, H, W, 3]` of any size in, the pyramid `{4, 8, 16, 32}` out.

    Level s has `ceil(H / s)` by `ceil(W / s)` positions: images, and maps before their patches are merged,
    are padded at the bottom and right. It is its stage's output before merging, normalised. In training
    residual branches are dropped at random, where `drop_path` is not 0; that takes the rng `stochastic`.

    Attributes:
        depths: blocks of each stage.
        width: channels of the first stage; each further stage has twice as many.
        heads: of each stage.
        window: side of a window.
        drop_path: rate of stochastic depth at the last block.
        scan_blocks: compile a stage's repeated pairs of blocks once; same parameters, same outputs.
        dtype: of the computation and the features.
    """

    depths: tuple[int, ...] = VARIANTS["swin_t"].depths
    width: int = VARIANTS["swin_t"].width
    heads: tuple[int, ...] = VARIANTS["swin_t"].heads
    window: int = VARIANTS["swin_t"].window
    drop_path: float = 0.0
    scan_blocks: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b H W 3"], train: bool) -> dict[int, Float[Array, "b h w c"]]:
        norm = partial(_norm, dtype=self.dtype)
        x = PatchEmbedding(self.width, self.dtype, name="patch_embedding")(images)
        x = norm(name="patch_norm")(x)
        rates, pyramid = drop_path_rates(sum(self.depths), self.drop_path), {}
        for stage, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
            if stage > 0:
                x = norm(name=f"merge{stage + 1}_norm")(_two_by_two(x))
                x = _dense(x.shape[-1] // 2, self.dtype, f"merge{stage + 1}", use_bias=False)(x)
            makers = [partial(Block, heads, self.window, s, self.dtype) for s in (0, self.window // 2)]
            names = [f"stage{stage + 1}_{i}" for i in range(depth)]
            drops, rates = draw(self, rates[:depth], train), rates[depth:]
            x = run_blocks(self, makers, names, x, drops, scan=self.scan_blocks)
            pyramid[PATCH << stage] = norm(name=f"norm_{PATCH << stage}")(x)
        return pyramid


def _dense(features: int, dtype: Any, name: str, use_bias: bool = True) -> nn.Dense:
    return nn.Dense(features, use_bias, dtype=dtype, kernel_init=INIT, name=name)


def _norm(dtype: Any, name: str) -> nn.LayerNorm:
    """Statistics in float32."""
    return nn.LayerNorm(EPSILON, dtype=dtype, use_fast_variance=False, name=name)


def _drop(y: Float[Array, "b h w c"], drops: Drops | None, branch: int) -> Float[Array, "b h w c"]:
    return y if drops is None else drop_path(y, drops.rate, jax.random.fold_in(drops.key, branch))


def _two_by_two(x: Float[Array, "b h w c"]) -> Float[Array, "b H W 4*c"]:
    """Neighbours side by side in the channels, the column's step before the row's: (0, 0), (1, 0), ..."""
    x = pad_to_multiple(x, 2)
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 4, 2, 5).reshape(b, h // 2, w // 2, 4 * c)


class _Names(NamedTuple):
    """One project's names: of modules, and, in `block`, of a block's parts by ours."""

    patch: str
    patch_norm: str
    block_prefix: Callable[[int, int], str]  # of stage and block, from 0
    merge_prefix: Callable[[int], str]  # of the stage that it leads to, 1 to 3
    block: dict[str, str]
    qkv: tuple[str, ...]
    table: str
    level_norm: str = ""  # a format with `stage`, from 1


_FUSED = {"norm1": "norm1", "proj": "attn.proj", "norm2": "norm2"}
_TIMM = _Names(
    patch="patch_embed.proj",
    patch_norm="patch_embed.norm",
    block_prefix=lambda stage, i: f"layers.{stage}.blocks.{i}.",
    merge_prefix=lambda stage: f"layers.{stage}.downsample.",
    block={**_FUSED, "fc1": "mlp.fc1", "fc2": "mlp.fc2"},
    qkv=("attn.qkv",),
    table="attn.relative_position_bias_table",
)
_TORCHVISION = _TIMM._replace(
    patch="features.0.0",
    patch_norm="features.0.2",
    block_prefix=lambda stage, i: f"features.{2 * stage + 1}.{i}.",
    merge_prefix=lambda stage: f"features.{2 * stage}.",
    block={**_FUSED, "fc1": "mlp.0", "fc2": "mlp.3"},
)
_TRANSFORMERS = _Names(
    patch="embeddings.patch_embeddings.projection",
    patch_norm="embeddings.norm",
    block_prefix=lambda stage, i: f"encoder.layers.{stage}.blocks.{i}.",
    merge_prefix=lambda stage: f"encoder.layers.{stage - 1}.downsample.",
    block={
        "norm1": "layernorm_before",
        "proj": "attention.output.dense",
        "norm2": "layernorm_after",
        "fc1": "intermediate.dense",
        "fc2": "output.dense",
    },
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    table="attention.self.relative_position_bias_table",
    level_norm="hidden_states_norms.stage{stage}",
)


def _targets(names: _Names, depths: tuple[int, ...]) -> dict[str, WeightTarget]:
    """Every tensor that has a place here, by its name."""
    table = _weight_and_bias(names.patch, ("patch_embedding",), "conv")
    table |= _norm_targets(names.patch_norm, ("patch_norm",))
    for stage, depth in enumerate(depths):
        if stage > 0:
            source = names.merge_prefix(stage)
            table |= _norm_targets(f"{source}norm", (f"merge{stage + 1}_norm",))
            path = (f"merge{stage + 1}", "kernel")
            table[f"{source}reduction.weight"] = WeightTarget("params", path, "linear")
        for i in range(depth):
            source, block = names.block_prefix(stage, i), f"stage{stage + 1}_{i}"
            for ours, theirs in names.block.items():
                targets = _norm_targets if ours.startswith("norm") else _weight_and_bias
                table |= targets(source + theirs, (block, ours))
            for k, theirs in enumerate(names.qkv):
                table |= _weight_and_bias(source + theirs, (block, "qkv"), part=(k, len(names.qkv)))
            table[source + names.table] = WeightTarget("params", (block, "position_bias"), "position_bias")
        if names.level_norm:
            table |= _norm_targets(names.level_norm.format(stage=stage + 1), (f"norm_{PATCH << stage}",))
    return table


def _weight_and_bias(
    source: str, path: tuple[str, ...], layout: str = "linear", part: tuple[int, int] = (0, 1)
) -> dict[str, WeightTarget]:
    return {
        f"{source}.weight": WeightTarget("params", (*path, "kernel"), layout, part),
        f"{source}.bias": WeightTarget("params", (*path, "bias"), "plain", part),
    }


def _norm_targets(source: str, path: tuple[str, ...]) -> dict[str, WeightTarget]:
    return {
        f"{source}.weight": WeightTarget("params", (*path, "scale")),
        f"{source}.bias": WeightTarget("params", (*path, "bias")),
    }


def left_out(name: str) -> bool:
    """Any naming's classifier and its norm, the token of masked images, and buffers."""
    heads = ("head.", "norm.", "classifier.", "layernorm.", "swin.layernorm.")
    return name.startswith(heads) or name.endswith((".relative_position_index", ".attn_mask", ".mask_token"))


def namings(depths: tuple[int, ...]) -> tuple[Naming, ...]:
    """The names that weight files of these depths come in.

    timm's and torchvision's networks are classifiers, without norms of the levels; transformers' files have
    them where they are of a segmentation model. Its names are those of saved files, not those in memory.
    """
    tables = {
        name: _targets(names, depths)
        for name, names in (("timm", _TIMM), ("torchvision", _TORCHVISION), ("transformers", _TRANSFORMERS))
    }
    level_norms = frozenset(n for n in tables["transformers"] if n.startswith("hidden_states_norms."))
    return (
        Naming("timm", tables["timm"], left_out, ("", "model.")),
        Naming("torchvision", tables["torchvision"], left_out),
        Naming("transformers", tables["transformers"], left_out, ("", "swin.", "backbone."), level_norms),
    )


def build(
    name: str,
    *,
    output_stride: int = 32,
    multi_grid: bool = False,
    drop_path: float = 0.0,
    scan_blocks: bool = False,
    decay: float = 0.9997,
    dtype: Any = jnp.float32,
) -> Swin:
    """The network of a key of `VARIANTS`; Swin has no dilation and no batch normalisation."""
    del output_stride, multi_grid, decay
    return Swin(*VARIANTS[name], drop_path=drop_path, scan_blocks=scan_blocks, dtype=dtype)


def entry(name: str) -> Backbone:
    """The registry entry of a key of `VARIANTS`."""
    variant = VARIANTS[name]
    return Backbone(
        build=partial(build, name),
        channels={PATCH << stage: variant.width << stage for stage in range(4)},
        normalization=IMAGENET,
        namings=partial(namings, variant.depths),
        drop_path=DROP_PATH,
    )
