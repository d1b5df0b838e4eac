"""The whole model from its parts, with every stop-gradient (paper, Sec. 3, Fig. 2).

```
image -> backbone -> {f4, f8, f16, f32};  f32 -> context -> high -> tokens -> guide_logits     the teacher
f4, f8, f16, high -> upsampler -> axial attention -> low -> tokens -> logits                    the student
```
"""

from collections.abc import Callable
from typing import Any, Literal, no_type_check

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.lax import stop_gradient
from jaxtyping import Array, Float, UInt8

from hfgd_jax.geometry import Geometry, grid_size, pad_to, resize
from hfgd_jax.models.guidance import classify

Branch = Literal["prediction", "guide", "probe"]


@no_type_check  # JAX also makes it of what is no array, such as `jax.ShapeDtypeStruct`
@struct.dataclass
class Outputs:
    """The result of a segmenter: maps of the padded grid, all float32.

    Attributes:
        logits: the prediction, at the output stride.
        guide_logits: of the guide branch, at the stride of the backbone's last feature.
        probe_logits: of the auxiliary FCN, at the same stride.
        car_features: what the CAR losses regularise, at the same stride.
        region_logits: of OCR's soft object regions, at the same stride.
            All but `logits` exist in training only, and are None where the model has no such part.
    """

    logits: Float[Array, "b h w k"]
    guide_logits: Float[Array, "b i j k"] | None = None
    probe_logits: Float[Array, "b i j k"] | None = None
    car_features: Float[Array, "b i j c"] | None = None
    region_logits: Float[Array, "b i j k"] | None = None


class Segmenter(nn.Module):
    """The whole model. Parameter groups carry the names of the parts below.

    The upsampler reads as level 32 the context encoder's `high`, or the backbone's own f32 where there is no
    context encoder, that is where the encoding is `identity`, an upsampler follows and no guide branch needs
    a `high` to train the tokens on (reading: this gives the multiply-accumulates of the paper's Table 9).

    Attributes:
        backbone: normalised images to the pyramid.
        context: f32 to `high`; None where nothing reads it.
        upsampler: the pyramid to the low feature.
        axial_attention: low feature to low feature; None for none.
        class_tokens: the classifier of the prediction, and of the guide branch where there is one.
        probe: the auxiliary FCN on f32, with its own head and classifier (reading: it measures the
            backbone's own feature, whatever the context); None for none.
        share_tokens: guidance: the guide branch trains the tokens, the upsampler borrows them.
        freeze_tokens: the upsampler's loss stops at borrowed tokens (paper, Sec. 5.2, has 48.50 mIOU
            without any stop-gradient).
        protect: the upsampler's loss stops at the pyramid.
        residual: the student's feature is the high-level one, resized, and what the upsampler adds to it
            (not of the paper, docs/readings.md).
        probe_stop_gradient: the probe's loss stops at the backbone.
        freeze_backbone: in training, the backbone runs as at inference (running statistics, no stochastic
            depth) and every loss stops at its features, so that no part of it is differentiated.
        geometry: of the grid that images are padded to.
        mean, std: of RGB 0-255, as the backbone's weights expect.
        constrain: in training, sets the sharding of the decoder's features (such as
            `jax.lax.with_sharding_constraint`); None leaves it to the compiler.
    """

    backbone: nn.Module
    context: nn.Module | None
    upsampler: nn.Module
    axial_attention: nn.Module | None
    class_tokens: nn.Module
    probe: nn.Module | None
    share_tokens: bool
    freeze_tokens: bool
    protect: bool
    probe_stop_gradient: bool
    geometry: Geometry
    mean: tuple[float, ...]
    std: tuple[float, ...]
    constrain: Callable[[Array], Array] | None = None
    freeze_backbone: bool = False
    residual: bool = False

    def __call__(
        self,
        images: UInt8[np.ndarray | Array, "b H W 3"] | Float[np.ndarray | Array, "b H W 3"],
        train: bool,
        branch: Branch = "prediction",
    ) -> Outputs:
        """Args:
        images: RGB 0-255 of any size; padded to the grid with the mean pixel.
        train: normalises with the batch's statistics (`mutable=["batch_stats"]`) and computes the guide
            branch, the probe and the CAR features; without it, only `logits` are computed.
        branch: which logits are computed at inference: those of the prediction, or of the guide branch
            or the probe, which are at the stride of the backbone's last feature. Under jit the other
            branches cost nothing.
        """
        pyramid = dict(self.backbone(self._on_grid(images), train and not self.freeze_backbone))
        if self.freeze_backbone:
            pyramid = stop_gradient(pyramid)
        f32, high, car_features, region_logits = pyramid[32], None, None, None
        if self.context is not None:
            high, car_features, region_logits = self.context(f32, train)
            pyramid[32] = high

        constrain = self.constrain if train and self.constrain and not self.is_initializing() else _identity
        pyramid = {level: constrain(feature) for level, feature in pyramid.items()}
        seen = stop_gradient(pyramid) if self.protect else pyramid
        low = constrain(self.upsampler(seen, train))
        if self.axial_attention is not None:
            low = constrain(self.axial_attention(low, train))
        if self.residual:
            low = constrain(low + resize(seen[32], low.shape[1:3], geometry=self.geometry))

        tokens = self.class_tokens()
        frozen = self.share_tokens and self.freeze_tokens
        logits = classify(low, stop_gradient(tokens) if frozen else tokens)
        if not train and not self.is_initializing():
            if branch == "prediction":
                return Outputs(logits)
            return Outputs(classify(high, tokens) if branch == "guide" else self.probe(f32, train))

        probe_logits = None
        if self.probe is not None:
            probe_logits = self.probe(stop_gradient(f32) if self.probe_stop_gradient else f32, train)
        return Outputs(
            logits,
            guide_logits=classify(high, tokens) if self.share_tokens else None,
            probe_logits=probe_logits,
            car_features=None if car_features is None else car_features.astype(jnp.float32),
            region_logits=region_logits,
        )

    def _on_grid(self, images: Any) -> Float[Array, "b h w 3"]:
        """Normalises, then pads with zero, which is the mean pixel."""
        x = (images.astype(jnp.float32) - jnp.asarray(self.mean)) / jnp.asarray(self.std)
        return pad_to(x, grid_size(x.shape[1:3], self.geometry), 0.0)


def _identity(x: Array) -> Array:
    return x
