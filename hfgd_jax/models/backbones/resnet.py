"""ResNet-18, 50 and 101: torchvision's v1.5 (stride on the 3x3), dilated for OS 16 and 8 (spec 1.6).

Symmetric padding everywhere: with sizes of `32k + 1` a stride-s feature sits on pixels 0, s, 2s, ....
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from hfgd_jax.models.backbones.base import IMAGENET, Backbone, Naming, WeightTarget
from hfgd_jax.models.layers import BatchNorm, Conv, batch_norm, max_pool

EPSILON = 1e-5
STAGE_CHANNELS = (64, 128, 256, 512)
DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
MULTI_GRID = (1, 2, 4)
he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")


def is_bottleneck(name: str) -> bool:
    """Whether the network's blocks are 1x1-3x3-1x1 (expansion 4) rather than 3x3-3x3."""
    return name != "resnet18"


class Block(nn.Module):
    """A residual block; `dilations` are those of its 3x3 convolutions, in order (a bottleneck has one)."""

    features: int
    bottleneck: bool
    stride: int
    dilations: tuple[int, ...]
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
            x = norm(name="downsample_bn")(conv(out, 1, self.stride, name="downsample_conv")(x))
        return nn.relu(y + x)


class ResNet(nn.Module):
    """Normalised images `[B, H, W, 3]` in, the pyramid `{4, 8, 16, 32}` out.

    Dilation keeps the weights' meaning: sampled at stride 32, the features of any `output_stride` are those
    of the undilated network (torchvision's convention: the first block of a dilated stage still has the rate
    of the stage before, for the convolution whose stride went). With `multi_grid` (DeepLab's convention,
    only when dilated) block i of the last stage has the stage's rate times 1, 2, 4.

    Attributes:
        variant: a key of `DEPTHS`.
        output_stride: 32, 16 or 8, of the last level.
        multi_grid: see above.
        decay: of the batch normalisation.
        dtype: of the computation and the features.
    """

    variant: str = "resnet50"
    output_stride: int = 32
    multi_grid: bool = False
    decay: float = 0.9997
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b H W 3"], train: bool) -> dict[int, Float[Array, "b h w c"]]:
        x = Conv(64, 7, 2, kernel_init=he_fan_out, dtype=self.dtype, name="conv1")(images)
        x = batch_norm(train, BatchNorm(self.decay, EPSILON), dtype=self.dtype, name="bn1")(x)
        x = max_pool(nn.relu(x))
        pyramid = {}
        for stage, blocks in enumerate(self._plan()):
            for i, (stride, dilations) in enumerate(blocks):
                x = Block(
                    STAGE_CHANNELS[stage],
                    is_bottleneck(self.variant),
                    stride,
                    dilations,
                    BatchNorm(self.decay, EPSILON),
                    self.dtype,
                    name=f"layer{stage + 1}_{i}",
                )(x, train)
            pyramid[4 << stage] = x
        return pyramid

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


def torchvision_targets(name: str) -> dict[str, WeightTarget]:
    """torchvision's name of every tensor of the network, and where it goes."""
    bottleneck = is_bottleneck(name)
    table = _conv_and_norm("conv1", "bn1", ("conv1",), ("bn1",))
    for stage, depth in enumerate(DEPTHS[name]):
        for i in range(depth):
            source, block = f"layer{stage + 1}.{i}", f"layer{stage + 1}_{i}"
            for k in range(1, 4 if bottleneck else 3):
                table |= _conv_and_norm(
                    f"{source}.conv{k}", f"{source}.bn{k}", (block, f"conv{k}"), (block, f"bn{k}")
                )
            if i == 0 and (stage > 0 or bottleneck):
                table |= _conv_and_norm(
                    f"{source}.downsample.0",
                    f"{source}.downsample.1",
                    (block, "downsample_conv"),
                    (block, "downsample_bn"),
                )
    return table


def left_out(name: str) -> bool:
    """The source's classifier and torch's batch counters."""
    return name.startswith("fc.") or name.endswith(".num_batches_tracked")


def _conv_and_norm(
    conv: str, norm: str, conv_path: tuple[str, ...], norm_path: tuple[str, ...]
) -> dict[str, WeightTarget]:
    return {
        f"{conv}.weight": WeightTarget("params", (*conv_path, "kernel"), "conv"),
        f"{norm}.weight": WeightTarget("params", (*norm_path, "scale")),
        f"{norm}.bias": WeightTarget("params", (*norm_path, "bias")),
        f"{norm}.running_mean": WeightTarget("batch_stats", (*norm_path, "mean")),
        f"{norm}.running_var": WeightTarget("batch_stats", (*norm_path, "var")),
    }


def namings(name: str) -> tuple[Naming, ...]:
    """The names that its weight files come in; timm's are torchvision's."""
    targets = torchvision_targets(name)
    return tuple(Naming(source, targets, left_out) for source in ("timm", "torchvision"))


def build(
    name: str,
    *,
    output_stride: int = 32,
    multi_grid: bool = False,
    drop_path: float = 0.0,
    scan_blocks: bool = False,
    decay: float = 0.9997,
    dtype: Any = jnp.float32,
) -> ResNet:
    """The network of a key of `DEPTHS`; ResNets have no stochastic depth and are not scanned."""
    del drop_path, scan_blocks
    return ResNet(name, output_stride, multi_grid, decay, dtype)


def entry(name: str) -> Backbone:
    """The registry entry of a key of `DEPTHS`."""
    return Backbone(
        build=partial(build, name),
        channels=channels(name),
        normalization=IMAGENET,
        namings=partial(namings, name),
    )
