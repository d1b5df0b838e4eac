"""No upsampler: the high-level feature itself is classified (the "-" and "Dilation" rows of Table 1)."""

from jaxtyping import Array, Float

from hfgd_jax.models.upsamplers.base import Upsampler


class NoUpsampler(Upsampler):
    """Gives level 32 of the pyramid as it is; no parameters."""

    def __call__(
        self, pyramid: dict[int, Float[Array, "b _ _ _"]], train: bool
    ) -> Float[Array, "b h w channels"]:
        del train
        return pyramid[32]
