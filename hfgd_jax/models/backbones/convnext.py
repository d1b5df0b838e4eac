"""ConvNeXt (Liu et al., "A ConvNet for the 2020s", 2022), with dilation for output strides 16 and 8.

Convolutions of the stem and between stages see whole patches, so that features are cells of the image
(`half_pixel`), and any input size is rounded down to whole patches.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from hfgd_jax.models.backbones.base import IMAGENET, Backbone
from hfgd_jax.models.backbones.blocks import run_blocks
from hfgd_jax.models.backbones.stochastic import Drops, draw, drop_path, drop_path_rates
from hfgd_jax.models.layers import BatchNorm, Conv, DepthwiseConv, PatchConv, layer_norm

init = nn.initializers.truncated_normal(0.02)
LAYER_SCALE = 1e-6


class ConvNeXtVariant(NamedTuple):
    """Depth and width of each stage, and the rate of stochastic depth in segmentation.

    The rates are those of `semantic_segmentation/configs/convnext` in the authors' code, whose UPerNet
    mmsegmentation took over; the smallest network has none there, and here none.
    """

    depths: tuple[int, int, int, int]
    widths: tuple[int, int, int, int]
    drop_path: float


VARIANTS = {
    "convnext_a": ConvNeXtVariant((2, 2, 6, 2), (40, 80, 160, 320), 0.0),  # timm's "atto"
    "convnext_t": ConvNeXtVariant((3, 3, 9, 3), (96, 192, 384, 768), 0.4),
    "convnext_s": ConvNeXtVariant((3, 3, 27, 3), (96, 192, 384, 768), 0.3),
    "convnext_b": ConvNeXtVariant((3, 3, 27, 3), (128, 256, 512, 1024), 0.4),
    "convnext_l": ConvNeXtVariant((3, 3, 27, 3), (192, 384, 768, 1536), 0.4),
}


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, layer norm and a two-layer perceptron, scaled by channel and added to the input.

    Attributes:
        dilation: of the 7x7.
        dtype: of the computation and the result.
    """

    dilation: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], drops: Drops | None) -> Float[Array, "b h w c"]:
        c = x.shape[-1]
        dense = partial(Conv, kernel_size=1, use_bias=True, kernel_init=init, dtype=self.dtype)
        y = DepthwiseConv(7, self.dilation, init, self.dtype, name="depthwise")(x)
        y = layer_norm(dtype=self.dtype, name="norm")(y)
        y = nn.gelu(dense(4 * c, name="expand")(y), approximate=False)
        y = dense(c, name="project")(y)
        scale = self.param("layer_scale", nn.initializers.constant(LAYER_SCALE), (c,), jnp.float32)
        y = y * scale.astype(self.dtype)
        return x + (y if drops is None else drop_path(y, drops.rate, drops.key))


class ConvNeXt(nn.Module):
    """Normalised images `[B, H, W, 3]` in, the pyramid `{4, 8, 16, 32}` out, H and W at least 32.

    Every level has a layer norm of its own, `norm_4` to `norm_32`, as the segmentation models of the
    authors, mmsegmentation and transformers do; the stages after it go on without.

    A stage whose stride is dilated away has timm's rates: 2 for the first such stage and 4 for the second,
    whose 2x2 convolutions see the rates 1 and 2 and keep the size (`layers.PatchConv`).

    Attributes:
        depths, widths: blocks and channels of each stage.
        output_stride: 32, 16 or 8, of the last level.
        drop_path: stochastic depth's rate of the last block, in training; earlier ones rise linearly from
            0. Above 0 training needs an rng `stochastic`.
        scan_blocks: the blocks of a stage are compiled once (`blocks.run_blocks`).
        remat: blocks are computed again in the backward pass (`blocks.run_blocks`).
        dtype: of the computation and the features.
    """

    depths: tuple[int, ...] = VARIANTS["convnext_t"].depths
    widths: tuple[int, ...] = VARIANTS["convnext_t"].widths
    output_stride: int = 32
    drop_path: float = 0.0
    scan_blocks: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b H W 3"], train: bool) -> dict[int, Float[Array, "b _ _ _"]]:
        conv = partial(PatchConv, kernel_init=init, dtype=self.dtype)
        norm = partial(layer_norm, dtype=self.dtype)
        rates = drop_path_rates(sum(self.depths), self.drop_path)
        x = norm(name="stem_norm")(conv(self.widths[0], 4, 4, name="stem")(images))
        pyramid, spatial, rate, done = {}, 4, 1, 0
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), 1):
            if stage > 1:
                stride = 2 if spatial < self.output_stride else 1
                x = norm(name=f"downsample{stage}_norm")(x)
                x = conv(width, 2, stride, rate, name=f"downsample{stage}")(x)
                spatial, rate = spatial * stride, rate * (2 // stride)
            names = [f"stage{stage}_{i}" for i in range(depth)]
            drops = draw(self, rates[done : done + depth], train)
            block = partial(ConvNeXtBlock, rate, self.dtype)
            x = run_blocks(self, [block], names, x, drops, scan=self.scan_blocks, remat=self.remat)
            level, done = 2 << stage, done + depth
            pyramid[level] = norm(name=f"norm_{level}")(x)
        return pyramid


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
) -> ConvNeXt:
    """The network of a key of `VARIANTS`; ConvNeXt has no multi-grid and no batch normalisation."""
    del multi_grid, expanded_levels, bn
    depths, widths, _ = VARIANTS[name]
    return ConvNeXt(depths, widths, output_stride, drop_path, scan_blocks, remat, dtype)


def entry(name: str) -> Backbone:
    """The registry entry of a key of `VARIANTS`."""
    variant = VARIANTS[name]
    return Backbone(
        build=partial(build, name),
        channels={4 << s: width for s, width in enumerate(variant.widths)},
        normalization=IMAGENET,
        drop_path=variant.drop_path,
    )
