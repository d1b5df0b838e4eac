"""PPM, the pyramid pooling module (Zhao et al., PSPNet, 2017, in the form of UPerNet, Xiao et al. 2018)."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim
from jax.lax import Precision
from jaxtyping import Array, Float

from hfgd_jax.geometry import Side, resize
from hfgd_jax.models.context.base import ContextEncoder, Encoded
from hfgd_jax.models.layers import ConvNormRelu

BINS = (1, 2, 3, 6)


class PyramidPooling(ContextEncoder):
    """The feature beside its averages in 1, 2, 3 and 6 bins a side; 3x3 conv-norm-ReLU to `channels`.

    Each pooled map has a 1x1 conv-norm-ReLU to `context_channels` (512 in UPerNet) and is resized back
    bilinearly, in the model's geometry. The concatenation is in the order input, bins 1, 2, 3, 6. A norm of
    a pooled map has few samples, one an image with a single bin: at batch size 1 their variance is 0, the
    branch then gives its bias and its convolution does not learn.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Encoded:
        maps = [x.astype(self.dtype)]
        for bins in BINS:
            pooled = adaptive_average_pool(x, bins)
            branch = ConvNormRelu(self.context_channels, 1, self.bn, self.dtype, name=f"branch_{bins}")
            maps.append(resize(branch(pooled, train), x.shape[1:3], geometry=self.geometry))
        out = ConvNormRelu(self.channels, 3, self.bn, self.dtype, signed=self.signed, name="out")
        return Encoded(out(jnp.concatenate(maps, axis=-1), train))


def adaptive_average_pool(x: Float[Array, "b h w c"], bins: int) -> Float[Array, "b bins bins c"]:
    """Averages over `bins` x `bins` cells of an image of any size; equals torch's `AdaptiveAvgPool2d`.

    Two matrix products with constant matrices, in float32 at full precision; returns x's dtype.
    """
    rows, columns = (pooling_matrix(side, bins) for side in x.shape[1:3])
    y = jnp.einsum("ih,bhwc->biwc", rows, x.astype(jnp.float32), precision=Precision.HIGHEST)
    return jnp.einsum("jw,biwc->bijc", columns, y, precision=Precision.HIGHEST).astype(x.dtype)


def pooling_matrix(size: Side, bins: int) -> Float[np.ndarray | Array, "bins size"]:
    """Row i averages the samples from floor(i * size / bins) to ceil((i + 1) * size / bins) - 1; float32.

    Neighbouring bins share a sample where `bins` does not divide `size`. A symbolic size
    (`jax.export.symbolic_shape`) gives a traced array.
    """
    i, sample = np.arange(bins)[:, None], (jnp if is_symbolic_dim(size) else np).arange(size)
    member = (sample >= i * size // bins) & (sample < -(-(i + 1) * size // bins))
    return (member / member.sum(axis=1, keepdims=True)).astype(np.float32)
