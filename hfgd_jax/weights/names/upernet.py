"""How transformers names the tensors of a whole UPerNet (`UperNetForSemanticSegmentation`)."""

from collections.abc import Callable
from functools import partial

from hfgd_jax.models.context.ppm import BINS
from hfgd_jax.weights.names import namings
from hfgd_jax.weights.names.base import Naming, WeightTarget, conv_and_norm_targets

LEVELS = (4, 8, 16)  # of the laterals; the top of the pyramid is the pooling module's


def naming(backbone_name: str) -> Naming:
    """The table of a saved file's names; every tensor in it must be there.

    The paths of the targets start at the model's groups (`backbone`, `context`, `upsampler`, `class_tokens`).

    Args:
        backbone_name: a key of `models.BACKBONES` that has a naming `transformers`.
    """
    inner = next(entry for entry in namings(backbone_name) if entry.name == "transformers")
    table = {
        f"backbone.{name}": target._replace(path=("backbone", *target.path))
        for name, target in inner.targets.items()
    }
    for i, bins in enumerate(BINS):
        table |= _conv_module(f"decode_head.psp_modules.{i}.1", "context", f"branch_{bins}")
    table |= _conv_module("decode_head.bottleneck", "context", "out")
    for i, level in enumerate(LEVELS):
        table |= _conv_module(f"decode_head.lateral_convs.{i}", "upsampler", f"lateral_{level}")
        table |= _conv_module(f"decode_head.fpn_convs.{i}", "upsampler", f"smooth_{level}")
    table |= _conv_module("decode_head.fpn_bottleneck", "upsampler", "fuse")
    table["decode_head.classifier.weight"] = WeightTarget("params", ("class_tokens", "kernel"), "conv")
    table["decode_head.classifier.bias"] = WeightTarget("params", ("class_tokens", "bias"))
    return Naming("transformers", table, partial(_left_out, inner.left_out))


def _conv_module(source: str, *path: str) -> dict[str, WeightTarget]:
    return conv_and_norm_targets(f"{source}.conv", f"{source}.batch_norm", (*path, "conv"), (*path, "norm"))


def _left_out(of_backbone: Callable[[str], bool], name: str) -> bool:
    """The auxiliary head, torch's batch counters, and what the backbone's naming leaves out."""
    if name.startswith("auxiliary_head.") or name.endswith(".num_batches_tracked"):
        return True
    return name.startswith("backbone.") and of_backbone(name.removeprefix("backbone."))
