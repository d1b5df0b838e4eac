"""ResNet-18, 50 and 101: torchvision's v1.5 (stride on the 3x3), dilated for OS 16 and 8.

The `d` variants (He et al., "Bag of tricks for image classification", 2019; timm's `resnet50d`) have a stem
of three 3x3 convolutions, and average where the shortcut of a plain one skips pixels.

Symmetric padding everywhere: with sizes of `32k + 1` a stride-s feature sits on pixels 0, s, 2s, ....
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from hfgd_jax.models.backbones.base import IMAGENET, Backbone
from hfgd_jax.models.layers import BatchNorm, Conv, average_pool, batch_norm, he_fan_out, max_pool

BATCH_NORM = BatchNorm(epsilon=1e-5)
STAGE_CHANNELS = (64, 128, 256, 512)
DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet50d": (3, 4, 6, 3),
    "resnet101d": (3, 4, 23, 3),
}
STEM_CHANNELS = (32, 32, 64)  # of a deep stem
MULTI_GRID = (1, 2, 4)


def is_bottleneck(name: str) -> bool:
    """Whether the network's blocks are 1x1-3x3-1x1 (expansion 4) rather than 3x3-3x3."""
    return name != "resnet18"


def is_deep(name: str) -> bool:
    """Whether the network is a `d` variant: a stem of three convolutions, averaging shortcuts."""
    return name.endswith("d")


class ResNetBlock(nn.Module):
    """A residual block.

    Attributes:
        features: of its 3x3 convolutions.
        bottleneck: 1x1-3x3-1x1 rather than 3x3-3x3.
        stride: of the first 3x3 and the shortcut.
        dilations: of the 3x3 convolutions, in order (a bottleneck has one).
        average: the shortcut takes the mean of 2x2 pixels before its 1x1 convolution, at the block's stride.
        bn: decay and epsilon of the batch normalisation.
        dtype: of the computation and the result.
    """

    features: int
    bottleneck: bool
    stride: int
    dilations: tuple[int, ...]
    average: bool
    bn: BatchNorm
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b H W d"]:
        conv = partial(Conv, kernel_init=he_fan_out, dtype=self.dtype)
        norm = partial(batch_norm, train, self.bn, dtype=self.dtype)
        f, out = self.features, self.features * (4 if self.bottleneck else 1)
        if self.bottleneck:
            y = nn.relu(norm(name="bn1")(conv(f, 1, name="conv1")(x)))
            y = conv(f, 3, self.stride, self.dilations[0], name="conv2")(y)
            y = conv(out, 1, name="conv3")(nn.relu(norm(name="bn2")(y)))
            y = norm(name="bn3")(y)
        else:
            y = conv(f, 3, self.stride, self.dilations[0], name="conv1")(x)
            y = conv(out, 3, 1, self.dilations[1], name="conv2")(nn.relu(norm(name="bn1")(y)))
            y = norm(name="bn2")(y)
        if self.stride != 1 or x.shape[-1] != out:
            x, stride = (average_pool(x, self.stride), 1) if self.average else (x, self.stride)
            x = norm(name="downsample_bn")(conv(out, 1, stride, name="downsample_conv")(x))
        return nn.relu(y + x)


class ResNet(nn.Module):
    """Normalised images `[B, H, W, 3]` in, the pyramid `{4, 8, 16, 32}` out.

    Dilation keeps the weights' meaning: sampled at stride 32, the features of any `output_stride` are those
    of the undilated network (torchvision's convention: the first block of a dilated stage still has the rate
    of the stage before, for the convolution whose stride was removed). With `multi_grid` (DeepLab's
    convention, only when dilated) block i of the last stage has the stage's rate times 1, 2, 4.

    Attributes:
        variant: a key of `DEPTHS`.
        output_stride: 32, 16 or 8, of the last level.
        multi_grid: see above.
        bn: decay and epsilon of the batch normalisation.
        remat: the backward pass keeps a block's input alone, and computes the rest of it again.
        dtype: of the computation and the features.
    """

    variant: str = "resnet50"
    output_stride: int = 32
    multi_grid: bool = False
    bn: BatchNorm = BATCH_NORM
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b H W 3"], train: bool) -> dict[int, Float[Array, "b _ _ _"]]:
        x, pyramid = max_pool(self._stem(images, train)), {}
        block = nn.remat(ResNetBlock, static_argnums=2) if self.remat else ResNetBlock
        for stage, blocks in enumerate(self._plan()):
            for i, (stride, dilations) in enumerate(blocks):
                x = block(
                    STAGE_CHANNELS[stage],
                    is_bottleneck(self.variant),
                    stride,
                    dilations,
                    is_deep(self.variant) and stage > 0 and i == 0,
                    self.bn,
                    self.dtype,
                    name=f"layer{stage + 1}_{i}",
                )(x, train)
            pyramid[4 << stage] = x
        return pyramid

    def _stem(self, x: Float[Array, "b H W 3"], train: bool) -> Float[Array, "b h w c"]:
        conv = partial(Conv, kernel_init=he_fan_out, dtype=self.dtype)
        norm = partial(batch_norm, train, self.bn, dtype=self.dtype)
        if not is_deep(self.variant):
            return nn.relu(norm(name="bn1")(conv(64, 7, 2, name="conv1")(x)))
        for i, features in enumerate(STEM_CHANNELS, 1):
            x = conv(features, 3, 2 if i == 1 else 1, name=f"stem_conv{i}")(x)
            x = nn.relu(norm(name=f"stem_bn{i}")(x))
        return x

    def _plan(self) -> list[list[tuple[int, tuple[int, ...]]]]:
        """Stride and dilations of every block of every stage."""
        plan, spatial, rate = [], 4, 1
        for stage, depth in enumerate(DEPTHS[self.variant]):
            stride, before = 1 if stage == 0 else 2, rate
            if spatial * stride > self.output_stride:
                stride, rate = 1, rate * 2
            spatial *= stride
            blocks = []
            for i in range(depth):
                first, rest = (before if i == 0 else rate), rate
                if self.multi_grid and stage == 3 and rate > 1:
                    first = rest = rate * MULTI_GRID[i]
                dilations = (first,) if is_bottleneck(self.variant) else (first, rest)
                blocks.append((stride if i == 0 else 1, dilations))
            plan.append(blocks)
        return plan


def channels(name: str) -> dict[int, int]:
    """Channels of each level of the pyramid."""
    return {4 << i: c * (4 if is_bottleneck(name) else 1) for i, c in enumerate(STAGE_CHANNELS)}


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
) -> ResNet:
    """The network of a key of `DEPTHS`; ResNets have no stochastic depth and are not scanned."""
    del expanded_levels, drop_path, scan_blocks
    return ResNet(name, output_stride, multi_grid, bn, remat, dtype)


def entry(name: str) -> Backbone:
    """The registry entry of a key of `DEPTHS`."""
    return Backbone(
        build=partial(build, name),
        channels=channels(name),
        normalization=IMAGENET,
        epsilon=BATCH_NORM.epsilon,
    )
