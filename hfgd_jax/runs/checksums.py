"""Checksums of arrays, computed on the devices that hold them; the same on any mesh and sharding."""

from typing import Any

import jax
import jax.numpy as jnp

from hfgd_jax.runtime import sharding

_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}  # 8 bytes are two words


def checksums(tree: Any) -> dict[str, int]:
    """The checksum of each leaf by the leaf's name, computed on the devices that hold it.

    For all processes to call; all get the same. One leaf after the other, with a small program for each
    shape: one program of hundreds of sums would compile for as long as a training step, and two programs at
    once may wait for each other's devices.

    Args:
        tree: a pytree of arrays, of any mesh and sharding.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {sharding.leaf_name(path): int(_jitted(leaf)) for path, leaf in leaves}


def checksum(x: jax.Array) -> jax.Array:
    """A uint32 scalar of the bits of `x`, the same on any mesh.

    The array's words of 32 bits (narrower elements count as a word each) are mixed with their position, and
    the results summed modulo 2**32. The mixing is one to one for each position: an array in which one word
    has changed never has the same sum; any other change has with a probability of 2**-32.

    Args:
        x: `[...]` of a float, integer or bool type of 8 to 64 bits.
    """
    words = _words(x)
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return jnp.sum(_mix(words ^ _mix(place + jnp.uint32(0x9E3779B9))), dtype=jnp.uint32)


_jitted = jax.jit(checksum)


def _words(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    return jax.lax.bitcast_convert_type(x, _UNSIGNED[x.dtype.itemsize]).astype(jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """Spreads every bit over the word, one to one (the finalizer of MurmurHash3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
