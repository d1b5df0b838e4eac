"""Swin Transformer T, S, B and L (Liu et al., ICCV 2021), as segmentation models use it.

Every stage pads its map to whole windows and shifts every second block's, whatever the map's size, and every
level has a LayerNorm of its own: mmsegmentation's Swin, and transformers' `SwinBackbone`. Classifiers differ
in one point: torchvision does not shift along an axis that one window covers, and timm and transformers'
`SwinModel` make the window as small as a smaller map (timm's `always_partition=True` is what is done here).
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hfgd_jax.models.backbones.base import IMAGENET, Backbone
from hfgd_jax.models.backbones.blocks import run_blocks
from hfgd_jax.models.backbones.stochastic import Drops, draw, drop_path, drop_path_rates
from hfgd_jax.models.backbones.windows import Windows, attend, pad_to_multiple, position_bias
from hfgd_jax.models.layers import BatchNorm, PatchConv, layer_norm

PATCH = 4
MLP_RATIO = 4
EPSILON = 1e-5
DROP_PATH = 0.3  # of UPerNet with Swin in mmsegmentation and in the authors' segmentation code, all sizes
INIT = nn.initializers.truncated_normal(0.02)


class SwinVariant(NamedTuple):
    """Blocks of each stage, channels of the first, heads of each stage, side of a window."""

    depths: tuple[int, ...]
    width: int
    heads: tuple[int, ...]
    window: int


VARIANTS = {
    "swin_t": SwinVariant((2, 2, 6, 2), 96, (3, 6, 12, 24), 7),
    "swin_s": SwinVariant((2, 2, 18, 2), 96, (3, 6, 12, 24), 7),
    "swin_b": SwinVariant((2, 2, 18, 2), 128, (4, 8, 16, 32), 12),
    "swin_l": SwinVariant((2, 2, 18, 2), 192, (6, 12, 24, 48), 12),
}


class SwinBlock(nn.Module):
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
        dense = partial(_dense, dtype=self.dtype)
        norm = partial(layer_norm, dtype=self.dtype, epsilon=EPSILON)
        windows = Windows(x.shape[1:3], self.window, self.shift)
        table = self.param("position_bias", INIT, ((2 * self.window - 1) ** 2, self.heads), jnp.float32)

        qkv = dense(3 * c, name="qkv")(windows.cut(norm(name="norm1")(x)))
        y = attend(qkv, position_bias(table, self.window), windows.regions())
        x = x + _drop(dense(c, name="proj")(windows.join(y)), drops, 0)

        y = nn.gelu(dense(MLP_RATIO * c, name="fc1")(norm(name="norm2")(x)), approximate=False)
        return x + _drop(dense(c, name="fc2")(y), drops, 1)


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
        remat: blocks are computed again in the backward pass (`blocks.run_blocks`).
        dtype: of the computation and the features.
    """

    depths: tuple[int, ...] = VARIANTS["swin_t"].depths
    width: int = VARIANTS["swin_t"].width
    heads: tuple[int, ...] = VARIANTS["swin_t"].heads
    window: int = VARIANTS["swin_t"].window
    drop_path: float = 0.0
    scan_blocks: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b H W 3"], train: bool) -> dict[int, Float[Array, "b _ _ _"]]:
        norm = partial(layer_norm, dtype=self.dtype, epsilon=EPSILON)
        stem = PatchConv(self.width, PATCH, PATCH, kernel_init=INIT, dtype=self.dtype, name="stem")
        x = norm(name="stem_norm")(stem(pad_to_multiple(images, PATCH)))
        rates, pyramid = drop_path_rates(sum(self.depths), self.drop_path), {}
        for stage, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
            if stage > 0:
                x = norm(name=f"merge{stage + 1}_norm")(_two_by_two(x))
                x = _dense(x.shape[-1] // 2, self.dtype, f"merge{stage + 1}", use_bias=False)(x)
            makers = [partial(SwinBlock, heads, self.window, s, self.dtype) for s in (0, self.window // 2)]
            names = [f"stage{stage + 1}_{i}" for i in range(depth)]
            drops, rates = draw(self, rates[:depth], train), rates[depth:]
            x = run_blocks(self, makers, names, x, drops, scan=self.scan_blocks, remat=self.remat)
            pyramid[PATCH << stage] = norm(name=f"norm_{PATCH << stage}")(x)
        return pyramid


def _dense(features: int, dtype: Any, name: str, use_bias: bool = True) -> nn.Dense:
    return nn.Dense(features, use_bias, dtype=dtype, kernel_init=INIT, name=name)


def _drop(y: Float[Array, "b h w c"], drops: Drops | None, branch: int) -> Float[Array, "b h w c"]:
    return y if drops is None else drop_path(y, drops.rate, jax.random.fold_in(drops.key, branch))


def _two_by_two(x: Float[Array, "b h w c"]) -> Float[Array, "b H W 4*c"]:
    """Neighbours side by side in the channels, the column's step before the row's: (0, 0), (1, 0), ..."""
    x = pad_to_multiple(x, 2)
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 4, 2, 5).reshape(b, h // 2, w // 2, 4 * c)


def build(
    name: str,
    *,
    output_stride: int = 32,
    multi_grid: bool = False,
    expanded_levels: bool = False,
    drop_path: float = 0.0,
    scan_blocks: bool = False,
    remat: bool = False,
    bn: BatchNorm | None = None,
    dtype: Any = jnp.float32,
) -> Swin:
    """The network of a key of `VARIANTS`; Swin has no dilation and no batch normalisation."""
    del output_stride, multi_grid, expanded_levels, bn
    return Swin(*VARIANTS[name], drop_path=drop_path, scan_blocks=scan_blocks, remat=remat, dtype=dtype)


def entry(name: str) -> Backbone:
    """The registry entry of a key of `VARIANTS`."""
    variant = VARIANTS[name]
    return Backbone(
        build=partial(build, name),
        channels={PATCH << stage: variant.width << stage for stage in range(4)},
        normalization=IMAGENET,
        drop_path=DROP_PATH,
    )
