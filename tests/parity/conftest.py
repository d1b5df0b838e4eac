"""What the comparisons with torch, torchvision, timm and transformers share (`make parity`).

Without those packages (extra `[parity]`) every module here is skipped with a reason.
"""

import importlib.util
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest


def _import_torchvision() -> None:
    """Makes torchvision importable where it was built for another torch.

    It then lacks its operators' kernels, which no model here calls, and stops at the first unknown schema.
    """
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define(
            "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, "
            "int sampling_ratio, bool aligned) -> Tensor"
        )
        _KEPT.append(library)  # its schemas live as long as it does
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        import torchvision  # noqa: F401


_KEPT: list = []
if importlib.util.find_spec("torch"):
    import torch

    if importlib.util.find_spec("torchvision"):
        _import_torchvision()


def randomize(module: "torch.nn.Module", seed: int = 0) -> "torch.nn.Module":
    """Random weights at which a deep network neither dies nor explodes, every buffer included; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if not value.is_floating_point():
                continue
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim >= 2 and not name.endswith("relative_position_bias_table"):
                fan_in = value[0].numel()
                value.copy_(noise / max(fan_in, 1) ** 0.5)
            elif name.endswith(("weight", "var")):
                value.copy_(1 + 0.2 * noise.abs())
            else:
                value.copy_(0.2 * noise)
    return module.eval()


def relative_error(ours: jax.Array, theirs: "torch.Tensor") -> float:
    """Largest difference over the largest magnitude; `theirs` may be NCHW of ours."""
    theirs = theirs.detach().numpy()
    if theirs.ndim == 4 and theirs.shape != ours.shape:
        theirs = theirs.transpose(0, 2, 3, 1)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(np.asarray(ours, np.float32) - theirs).max() / np.abs(theirs).max())


def random_image(height: int, width: int, batch: int = 1, seed: int = 1) -> np.ndarray:
    """A normalised image, float32 `[B, H, W, 3]`."""
    return np.random.default_rng(seed).standard_normal((batch, height, width, 3)).astype(np.float32)


@pytest.fixture(scope="session")
def parity():
    return SimpleNamespace(randomize=randomize, relative_error=relative_error, random_image=random_image)
