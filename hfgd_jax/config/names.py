"""The registries of a model's parts: the name in a config, and the file and class (or maker) in `models/`.

A new part is a file there and a line here (CONTRIBUTING.md). They are text, so that a config is checked
without loading a network. Names are the paper's.
"""

import importlib
from typing import Any

RESNETS = ("resnet18", "resnet50", "resnet101", "resnet50d", "resnet101d")
CONVNEXTS = ("convnext_a", "convnext_t", "convnext_s", "convnext_b", "convnext_l")
SWINS = ("swin_t", "swin_s", "swin_b", "swin_l")
EFFICIENTNETS = (
    *(f"efficientnet_b{size}" for size in range(8)),
    *(f"efficientnet_lite{size}" for size in range(5)),
)

# In models/backbones/; the file's `entry(name)` describes the backbone.
BACKBONES = {
    **dict.fromkeys(RESNETS, "resnet.entry"),
    **dict.fromkeys(CONVNEXTS, "convnext.entry"),
    **dict.fromkeys(SWINS, "swin.entry"),
    **dict.fromkeys(EFFICIENTNETS, "efficientnet.entry"),
}
# In models/context/.
CONTEXTS = {
    "identity": "identity.Identity",
    "aspp": "aspp.AtrousSpatialPyramidPooling",
    "ppm": "ppm.PyramidPooling",
    "ocr": "ocr.ObjectContext",
    "sa": "self_attention.SelfAttentionEncoder",
    "sa_car": "self_attention.SelfAttentionCarEncoder",
    "cae": "cae.ContextAugmentedEncoder",
}
# In models/upsamplers/.
UPSAMPLERS = {
    "none": "none.NoUpsampler",
    "sfpn": "semantic_fpn.SemanticFPN",
    "u_sfpn": "semantic_fpn.USemanticFPN",
    "fapn": "fapn.FaPN",
    "upernet": "upernet.UPerNet",
    "deeplabv3plus": "deeplabv3plus.DeepLabV3Plus",
}


def find(package: str, place: str) -> Any:
    """What a registry's text stands for: `name` of the module `file` of a package, for "file.name"."""
    file, _, name = place.partition(".")
    return getattr(importlib.import_module(f"{package}.{file}"), name)
