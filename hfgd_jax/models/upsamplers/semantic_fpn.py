"""SemanticFPN and the paper's U-SFPN (Sec. 3.3, Fig. 5)."""

from functools import partial

import flax.linen as nn
from jaxtyping import Array, Float

from hfgd_jax.geometry import Size, resize
from hfgd_jax.models.layers import ConvNormRelu
from hfgd_jax.models.upsamplers.base import Upsampler

LEVELS = (4, 8, 16, 32)


class SemanticFPN(Upsampler):
    """Laterals and a top-down path; per level convolutions and x2 steps up to the output; sum; 1x1 conv.

    Laterals are conv-norm-ReLU (reading, after the public code). The branch of level 4 has one convolution
    at OS=4, that of level 4 * 2^n has n, each followed by a x2 step; for OS=2 every branch has one more
    convolution, at OS=4, and one more step. No feature of the backbone at OS=2 is used. A dilated backbone's
    levels keep their convolutions; a step between levels of one size changes nothing.

    Attributes:
        lateral_kernel: 1 is SFPN, 3 is U-SFPN.
    """

    lateral_kernel: int = 1

    @nn.compact
    def __call__(
        self, pyramid: dict[int, Float[Array, "b _ _ _"]], train: bool
    ) -> Float[Array, "b h w channels"]:
        sizes = {level: pyramid[level].shape[1:3] for level in LEVELS}
        corner = 1 if self.geometry == "align_corners" else 0
        sizes[2] = tuple(2 * side - corner for side in sizes[4])
        merged = {}
        for level in reversed(LEVELS):
            x = self._conv(self.lateral_kernel, f"lateral_{level}")(pyramid[level], train)
            if level != LEVELS[-1]:
                x = x + resize(merged[level * 2], sizes[level], geometry=self.geometry)
            merged[level] = x
        total = None
        for level in LEVELS:
            x = self._branch(merged[level], level, sizes, train)
            total = x if total is None else total + x
        return self._conv(1, "out", self.signed)(total, train)

    def _branch(
        self, x: Float[Array, "b h w c"], level: int, sizes: dict[int, Size], train: bool
    ) -> Float[Array, "b H W c"]:
        if level == 4:
            x = self._conv(3, "branch_4_conv_4")(x, train)
        else:
            x = self._steps(x, level, 4, level, sizes, train)
        return self._steps(x, 4, self.output_stride, level, sizes, train)

    def _steps(
        self,
        x: Float[Array, "b h w c"],
        start: int,
        stop: int,
        level: int,
        sizes: dict[int, Size],
        train: bool,
    ) -> Float[Array, "b H W c"]:
        """Convolution and x2, from stride `start` to stride `stop`, on the branch of `level`."""
        while start > stop:
            suffix = "up" if level == 4 else "conv"
            x = self._conv(3, f"branch_{level}_{suffix}_{start}")(x, train)
            start //= 2
            x = resize(x, sizes[start], geometry=self.geometry)
        return x

    def _conv(self, kernel_size: int, name: str, signed: bool = False) -> ConvNormRelu:
        return ConvNormRelu(self.channels, kernel_size, self.bn, self.dtype, signed=signed, name=name)


USemanticFPN = partial(SemanticFPN, lateral_kernel=3)
