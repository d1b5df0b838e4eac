"""Online mining of hard pixels: which of a batch's pixels have the largest losses."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_BITS, _AT_ONCE = 32, 4  # of a loss; found in one pass over the pixels


def hardest(
    losses: Float[Array, "b H W"], weights: Float[Array, "b H W"], share: float
) -> Float[Array, "b H W"]:
    """The weights of the pixels with the largest losses, cut to `share` of their sum; the others' are 0.

    Shrivastava et al. 2016, for pixels. Readings: a share of the batch, not a threshold on the probability
    with a least number of pixels beside it, so that as much is learnt from at the end of a run as at its
    start and nothing is left to be tuned to the size of a crop; hard is what the loss says before class
    weights, and a pixel of weight 2 fills the share as two pixels do. The pixels that just reach the
    threshold count in part, all alike: the kept weights sum to the share exactly, whatever ties there are.

    The threshold is exact: it is found bit by bit (floats that are not negative are ordered as their bits
    are), in eight passes of sums and no sort, which under jit of a sharded batch are of all devices. There
    is no gradient through the choice.

    Args:
        losses: float32, not negative but for rounding; a NaN counts as hard.
        weights: float32, not negative; 0 where the pixel is ignored.
        share: in (0, 1].
    """
    order = jax.lax.bitcast_convert_type(jnp.where(losses <= 0, 0.0, losses), jnp.uint32)
    wanted = share * jnp.sum(weights)
    steps = jnp.arange(1, 2**_AT_ONCE, dtype=jnp.uint32)

    def narrow(i: Array, threshold: Array) -> Array:
        """The largest threshold, of those that differ in the next bits, that keeps what is wanted."""
        shift = (_BITS - _AT_ONCE * (i + 1)).astype(jnp.uint32)
        tried = threshold + (steps << shift)
        kept = jnp.sum(jnp.where(order >= tried[:, None, None, None], weights, 0.0), axis=(1, 2, 3))
        return threshold + (jnp.sum(kept >= wanted, dtype=jnp.uint32) << shift)

    threshold = jax.lax.fori_loop(0, _BITS // _AT_ONCE, narrow, jnp.uint32(0))
    above, at = (jnp.sum(jnp.where(mask, weights, 0.0)) for mask in (order > threshold, order == threshold))
    part = jnp.clip((wanted - above) / jnp.where(at > 0, at, 1.0), 0.0, 1.0)
    return weights * jnp.where(order > threshold, 1.0, jnp.where(order == threshold, part, 0.0))
