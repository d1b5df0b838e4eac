"""EfficientNet B0-B7 (Tan and Le, ICML 2019) and Lite0-Lite4, with dilation for output strides 16 and 8.

Lite networks are those of the same authors' `efficientnet/lite`: ReLU6 for SiLU, no squeeze-and-excitation,
and a stem and first and last stages that keep their sizes (the stem its 32 channels, the stages one block).

Symmetric padding of (k - 1) / 2 everywhere, so that with sizes of `32k + 1` a stride-s feature sits on pixels
0, s, 2s, .... There it equals TensorFlow's "same", with which the authors' weights were trained (timm's
`tf_efficientnet_*`); at every size it equals timm's networks without `tf_`.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hfgd_jax.models.backbones.base import IMAGENET, LITE, Backbone
from hfgd_jax.models.backbones.stochastic import Drops, draw, drop_path, drop_path_rates
from hfgd_jax.models.layers import BatchNorm, Conv, DepthwiseConv, batch_norm, he_fan_out

BATCH_NORM = BatchNorm(epsilon=1e-3)
DROP_PATH = 0.2  # the authors', in classification
STEM_CHANNELS, HEAD_CHANNELS = 32, 1280
REDUCTION = 4  # squeeze-and-excitation's channels are the block's input channels, divided by this


class Stage(NamedTuple):
    """Of EfficientNet-B0 (the paper's Table 1): expansion, kernel size, stride, channels and blocks."""

    expand: int
    kernel: int
    stride: int
    channels: int
    blocks: int


STAGES = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 5, 2, 40, 2),
    Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3),
    Stage(6, 5, 2, 192, 4),
    Stage(6, 3, 1, 320, 1),
)
LEVELS = {4: 1, 8: 2, 16: 4, 32: 6}  # the stage that each level is the output of

SCALES = {  # of width and depth
    "efficientnet_b0": (1.0, 1.0),
    "efficientnet_b1": (1.0, 1.1),
    "efficientnet_b2": (1.1, 1.2),
    "efficientnet_b3": (1.2, 1.4),
    "efficientnet_b4": (1.4, 1.8),
    "efficientnet_b5": (1.6, 2.2),
    "efficientnet_b6": (1.8, 2.6),
    "efficientnet_b7": (2.0, 3.1),
    "efficientnet_lite0": (1.0, 1.0),
    "efficientnet_lite1": (1.0, 1.1),
    "efficientnet_lite2": (1.1, 1.2),
    "efficientnet_lite3": (1.2, 1.4),
    "efficientnet_lite4": (1.4, 1.8),
}


def is_lite(name: str) -> bool:
    """Whether the network is one of the Lite family."""
    return "_lite" in name


def round_channels(channels: int, scale: float) -> int:
    """Scaled channels, to the nearest multiple of 8 that is not below nine tenths of them."""
    scaled = channels * scale
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def scaled_stages(name: str) -> tuple[Stage, ...]:
    """The stages of a key of `SCALES`: channels rounded, numbers of blocks rounded up."""
    width, depth = SCALES[name]
    stages = []
    for i, stage in enumerate(STAGES):
        fixed = is_lite(name) and i in (0, len(STAGES) - 1)
        stages.append(
            stage._replace(
                channels=round_channels(stage.channels, width),
                blocks=stage.blocks if fixed else math.ceil(depth * stage.blocks),
            )
        )
    return tuple(stages)


def head_channels(name: str) -> int:
    """Of the classifier's 1x1 convolution."""
    return HEAD_CHANNELS if is_lite(name) else round_channels(HEAD_CHANNELS, SCALES[name][0])


class EfficientNetBlock(nn.Module):
    """1x1 expansion, depthwise convolution, squeeze-and-excitation, linear 1x1 projection ("MBConv").

    The input is added where the shapes agree. Gives the result and, beside it, the activated expansion.

    Attributes:
        features: output channels.
        expand: the expansion's factor; 1: there is none.
        kernel_size, stride, dilation: of the depthwise convolution.
        lite: ReLU6 and no squeeze-and-excitation, rather than SiLU.
        bn: decay and epsilon of the batch normalisation.
        dtype: of the computation and the result.
    """

    features: int
    expand: int
    kernel_size: int
    stride: int
    dilation: int
    lite: bool
    bn: BatchNorm
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool, drops: Drops | None
    ) -> tuple[Float[Array, "b H W d"], Float[Array, "b h w e"]]:
        c = x.shape[-1]
        conv = partial(Conv, kernel_size=1, kernel_init=he_fan_out, dtype=self.dtype)
        norm = partial(batch_norm, train, self.bn, dtype=self.dtype)
        activation, y = nn.relu6 if self.lite else nn.silu, x
        if self.expand != 1:
            y = activation(norm(name="expand_bn")(conv(c * self.expand, name="expand")(y)))
        expansion = y
        depthwise = partial(DepthwiseConv, stride=self.stride, use_bias=False, dtype=self.dtype)
        y = depthwise(self.kernel_size, self.dilation, name="depthwise")(y)
        y = activation(norm(name="depthwise_bn")(y))
        if not self.lite:
            mean = y.mean((1, 2), keepdims=True, dtype=jnp.float32).astype(self.dtype)
            mean = activation(conv(c // REDUCTION, use_bias=True, name="se_reduce")(mean))
            y = y * nn.sigmoid(conv(y.shape[-1], use_bias=True, name="se_expand")(mean))
        y = norm(name="project_bn")(conv(self.features, name="project")(y))
        if self.stride == 1 and c == self.features:
            y = x + (y if drops is None else drop_path(y, drops.rate, drops.key))
        return y, expansion


class EfficientNet(nn.Module):
    """Normalised images `[B, H, W, 3]` in, the pyramid `{4, 8, 16, 32}` out, H and W at least 32.

    A level is the output of the last stage of its stride: a linear bottleneck, and narrow. With
    `expanded_levels` it is what the network itself makes of that next, six times as wide and activated: the
    expansion of the block that follows and, at level 32, the classifier's 1x1 convolution, which is left out
    otherwise. A protected decoder gets no more of the image than these (docs/readings.md).

    Dilation as in timm: the first block of a stage whose stride was removed still has the rate before;
    sampled at stride 32, the features of any `output_stride` are those of the undilated network.

    Attributes:
        variant: a key of `SCALES`.
        output_stride: 32, 16 or 8, of the last level.
        expanded_levels: see above.
        drop_path: stochastic depth's rate of the last block, in training; earlier ones rise linearly from
            0 (the authors' stop one block's step below it). Above 0 training needs an rng `stochastic`.
        bn: decay and epsilon of the batch normalisation.
        remat: the backward pass keeps a block's input alone, and computes the rest of it again.
        dtype: of the computation and the features.
    """

    variant: str = "efficientnet_b0"
    output_stride: int = 32
    expanded_levels: bool = False
    drop_path: float = 0.0
    bn: BatchNorm = BATCH_NORM
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b H W 3"], train: bool) -> dict[int, Float[Array, "b _ _ _"]]:
        lite, stages = is_lite(self.variant), scaled_stages(self.variant)
        block = nn.remat(EfficientNetBlock, static_argnums=2) if self.remat else EfficientNetBlock
        rates = drop_path_rates(sum(stage.blocks for stage in stages), self.drop_path)
        x, done, outputs, expansions = self._stem(images, train), 0, [], []
        for s, (stage, steps) in enumerate(zip(stages, self._plan(), strict=True)):
            drops = draw(self, rates[done : done + stage.blocks], train)
            done += stage.blocks
            for b, (stride, dilation) in enumerate(steps):
                shape = (
                    stage.channels,
                    stage.expand,
                    stage.kernel,
                    stride,
                    dilation,
                    lite,
                    self.bn,
                    self.dtype,
                )
                own = jax.tree.map(lambda v, b=b: v[b], drops)
                x, expansion = block(*shape, name=f"stage{s}_{b}")(x, train, own)
                if b == 0:
                    expansions.append(expansion)
            outputs.append(x)
        if not self.expanded_levels:
            return {level: outputs[s] for level, s in LEVELS.items()}
        wide = [*expansions[1:], self._head(x, train)]
        return {level: wide[s] for level, s in LEVELS.items()}

    def _head(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w d"]:
        x = Conv(head_channels(self.variant), 1, kernel_init=he_fan_out, dtype=self.dtype, name="head")(x)
        x = batch_norm(train, self.bn, dtype=self.dtype, name="head_bn")(x)
        return nn.relu6(x) if is_lite(self.variant) else nn.silu(x)

    def _stem(self, x: Float[Array, "b H W 3"], train: bool) -> Float[Array, "b h w c"]:
        lite = is_lite(self.variant)
        width = STEM_CHANNELS if lite else round_channels(STEM_CHANNELS, SCALES[self.variant][0])
        x = Conv(width, 3, 2, kernel_init=he_fan_out, dtype=self.dtype, name="stem")(x)
        x = batch_norm(train, self.bn, dtype=self.dtype, name="stem_bn")(x)
        return nn.relu6(x) if lite else nn.silu(x)

    def _plan(self) -> list[list[tuple[int, int]]]:
        """Stride and dilation of every block of every stage."""
        plan, spatial, rate = [], 2, 1
        for stage in scaled_stages(self.variant):
            stride, before = stage.stride, rate
            if spatial * stride > self.output_stride:
                stride, rate = 1, rate * stride
            spatial *= stride
            plan.append([(stride, before), *[(1, rate)] * (stage.blocks - 1)])
        return plan


def channels(name: str) -> dict[int, int]:
    """Channels of each level of the pyramid."""
    stages = scaled_stages(name)
    return {level: stages[s].channels for level, s in LEVELS.items()}


def build(
    name: str,
    *,
    output_stride: int = 32,
    multi_grid: bool = False,
    expanded_levels: bool = False,
    drop_path: float = 0.0,
    scan_blocks: bool = False,
    remat: bool = False,
    bn: BatchNorm = BATCH_NORM,
    dtype: Any = jnp.float32,
) -> EfficientNet:
    """The network of a key of `SCALES`; EfficientNets have no multi-grid and are not scanned."""
    del multi_grid, scan_blocks
    return EfficientNet(name, output_stride, expanded_levels, drop_path, bn, remat, dtype)


def entry(name: str) -> Backbone:
    """The registry entry of a key of `SCALES`."""
    return Backbone(
        build=partial(build, name),
        channels=channels(name),
        normalization=LITE if is_lite(name) else IMAGENET,
        drop_path=DROP_PATH,
        epsilon=BATCH_NORM.epsilon,
    )
