"""Online mining of hard pixels: which of a batch's pixels have the largest losses."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_BITS = 32  # of a loss


def hardest(
    losses: Float[Array, "*pixels"], weights: Float[Array, "*pixels"], share: float
) -> Float[Array, "*pixels"]:
    """The weights of the pixels with the largest losses, cut to `share` of their sum; the others' are 0.

    Shrivastava et al. 2016, for pixels. Readings: a share of the batch, not a threshold on the probability
    with a minimum number of pixels, so that the number of pixels learnt from stays the same throughout a run
    and does not depend on the size of a crop; the order is by the loss before class weights, and a pixel of
    weight 2 fills the share as two pixels do. Pixels exactly at the threshold all get the same part of their
    weight: the kept weights sum to the share exactly, also where losses are equal.

    The threshold is exact: it is found bit by bit (floats that are not negative are ordered as their bits
    are), in 32 sums and without a sort; under jit of a sharded batch the sums are of all devices. There is
    no gradient through the choice.

    Args:
        losses: float32, not negative but for rounding; a NaN counts as hard.
        weights: float32, not negative; 0 where the pixel is ignored.
        share: in (0, 1].
    """
    order = jax.lax.bitcast_convert_type(jnp.where(losses <= 0, 0.0, losses), jnp.uint32)
    wanted = share * jnp.sum(weights)

    def narrow(i: Array, threshold: Array) -> Array:
        """Sets the next bit where enough weight is still kept with it."""
        tried = threshold | (jnp.uint32(1) << (_BITS - 1 - i).astype(jnp.uint32))
        kept = jnp.sum(jnp.where(order >= tried, weights, 0.0))
        return jnp.where(kept >= wanted, tried, threshold)

    threshold = jax.lax.fori_loop(0, _BITS, narrow, jnp.uint32(0))
    above, at = (jnp.sum(jnp.where(mask, weights, 0.0)) for mask in (order > threshold, order == threshold))
    part = jnp.clip((wanted - above) / jnp.where(at > 0, at, 1.0), 0.0, 1.0)
    return weights * jnp.where(order > threshold, 1.0, jnp.where(order == threshold, part, 0.0))
