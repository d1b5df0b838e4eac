"""How timm, torchvision and transformers name the tensors of a ResNet."""

from collections.abc import Iterator

from hfgd_jax.models.backbones.resnet import DEPTHS, is_bottleneck, is_deep
from hfgd_jax.weights.names.base import Naming, WeightTarget, conv_and_norm_targets


def namings(name: str) -> tuple[Naming, ...]:
    """The namings of its weight files, timm's first.

    timm's names are torchvision's. Only timm has the `d` variants.

    Args:
        name: a key of `DEPTHS`.
    """
    timm = Naming("timm", _torchvision_targets(name), _left_out)
    if is_deep(name):
        return (timm,)
    prefixes = ("resnet.", "backbone.", "")
    transformers = Naming("transformers", _transformers_targets(name), _left_out, prefixes)
    return timm, timm._replace(name="torchvision"), transformers


def _torchvision_targets(name: str) -> dict[str, WeightTarget]:
    """By torchvision's names; of a `d` variant, by timm's."""
    if is_deep(name):
        norms = ("conv1.1", "conv1.4", "bn1")
        table, shift = {}, 1  # of the shortcut's layers: the first is its pooling, which has no tensors
        for i, norm in enumerate(norms):
            here = (f"stem_conv{i + 1}",), (f"stem_bn{i + 1}",)
            table |= conv_and_norm_targets(f"conv1.{3 * i}", norm, *here)
    else:
        table, shift = conv_and_norm_targets("conv1", "bn1", ("conv1",), ("bn1",)), 0
    for source, block, convolutions, shortcut in _blocks(name, "layer{stage}.{i}"):
        for k in range(1, convolutions + 1):
            here = (block, f"conv{k}"), (block, f"bn{k}")
            table |= conv_and_norm_targets(f"{source}.conv{k}", f"{source}.bn{k}", *here)
        if shortcut:
            here = (block, "downsample_conv"), (block, "downsample_bn")
            parts = f"{source}.downsample.{shift}", f"{source}.downsample.{shift + 1}"
            table |= conv_and_norm_targets(*parts, *here)
    return table


def _transformers_targets(name: str) -> dict[str, WeightTarget]:
    def layer(source: str, *here: tuple[str, ...]) -> dict[str, WeightTarget]:
        return conv_and_norm_targets(f"{source}.convolution", f"{source}.normalization", *here)

    table = layer("embedder.embedder", ("conv1",), ("bn1",))
    for source, block, convolutions, shortcut in _blocks(name, "encoder.stages.{s}.layers.{i}"):
        for k in range(convolutions):
            table |= layer(f"{source}.layer.{k}", (block, f"conv{k + 1}"), (block, f"bn{k + 1}"))
        if shortcut:
            table |= layer(f"{source}.shortcut", (block, "downsample_conv"), (block, "downsample_bn"))
    return table


def _blocks(name: str, pattern: str) -> Iterator[tuple[str, str, int, bool]]:
    """For every block: its name by `pattern`, its name here, its convolutions, if its shortcut has one."""
    bottleneck = is_bottleneck(name)
    for s, depth in enumerate(DEPTHS[name]):
        for i in range(depth):
            source = pattern.format(s=s, stage=s + 1, i=i)
            yield source, f"layer{s + 1}_{i}", 3 if bottleneck else 2, i == 0 and (s > 0 or bottleneck)


def _left_out(name: str) -> bool:
    """The source's classifier and torch's batch counters."""
    return name.startswith(("fc.", "classifier.")) or name.endswith(".num_batches_tracked")
