"""A segmenter that compiles in no time, for tests of what is built around one; and pictures."""

import contextlib
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hfgd_jax import config as configuration
from hfgd_jax import geometry
from hfgd_jax.inference.views import Inference
from hfgd_jax.models import BACKBONES
from hfgd_jax.models.layers import Conv
from hfgd_jax.models.segmenter import Outputs

MEAN = np.array([120.0, 120.0, 120.0])


class Small(nn.Module):
    """Two strided convolutions, a third, few classes; pads to the grid with the mean pixel."""

    geometry: str
    classes: int = 5

    @nn.compact
    def __call__(self, images, train, branch="prediction"):
        del train, branch
        x = geometry.pad_to(
            (jnp.asarray(images, jnp.float32) - 120) / 60,
            geometry.grid_size(images.shape[1:3], self.geometry),
            0.0,
        )
        corners = self.geometry == "align_corners"
        kernel, padding = ((3, 3), ((1, 1), (1, 1))) if corners else ((2, 2), "VALID")
        for width in (6, 8):
            x = nn.tanh(nn.Conv(width, kernel, strides=2, padding=padding)(x))
        return Outputs(nn.Dense(self.classes)(nn.tanh(nn.Conv(8, (3, 3))(x))))


class LightBackbone(nn.Module):
    """Five convolutions in place of a backbone, where the rest of the model is what is tested."""

    output_stride: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train):
        x, pyramid = Conv(8, 3, 2, dtype=self.dtype, name="stem")(x), {}
        for level in (4, 8, 16, 32):
            stride = 2 if level <= self.output_stride else 1
            conv = Conv(8, 3, stride, use_bias=True, dtype=self.dtype, name=f"stage_{level}")
            x = pyramid[level] = nn.relu(conv(x))
        return pyramid


@contextlib.contextmanager
def light_backbones():
    """The tiny configurations' backbones are a LightBackbone."""
    build = lambda output_stride, dtype, **others: LightBackbone(output_stride, dtype)  # noqa: E731
    names = ("resnet18", "convnext_a", "swin_t")
    before = {name: BACKBONES[name] for name in names}
    BACKBONES.update({name: BACKBONES["resnet18"]._replace(build=build) for name in names})
    try:
        yield
    finally:
        BACKBONES.update(before)


@partial(jax.jit, static_argnums=0)
def logits_of(model, variables, images):
    """Its logits, compiled."""
    return model.apply(variables, images, False).logits


def made(name, **settings):
    """An `Inference` of `Small` in a geometry, and its variables."""
    config = configuration.default()
    config.model.geometry = name
    config.eval.update(settings)
    configuration.validate(config)
    model = Small(name)
    variables = model.init(jax.random.key(1), jnp.zeros((1, 65, 65, 3)), False)
    return Inference(model, config), model, variables


def picture(height, width, seed=0):
    """Blobs, not noise: something that scales."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (height // 8 + 2, width // 8 + 2, 3)).astype(np.uint8)
    return np.ascontiguousarray(np.kron(coarse, np.ones((8, 8, 1), np.uint8))[:height, :width])
