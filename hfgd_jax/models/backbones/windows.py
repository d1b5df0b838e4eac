"""Attention within shifted windows, as Swin has it."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim
from jaxtyping import Array, Float, Int8

from hfgd_jax.geometry import Size

MASKED = -100.0  # added to the logits between positions that only the shift brought into one window


class Windows(NamedTuple):
    """How a map is cut into windows.

    The map is padded with zeros at the bottom and right to a multiple of the window, then rolled up and left
    by the shift. This is the order of transformers and torchvision; timm rolls first and pads then, which is
    the same only where nothing is padded.

    Attributes:
        size: height and width of the map.
        window: side of a window.
        shift: of the windows' grid along both axes; 0 for none.
    """

    size: Size
    window: int
    shift: int

    @property
    def grid(self) -> Size:
        """Windows along the height and the width."""
        return tuple(-(-side // self.window) for side in self.size)

    def cut(self, x: Float[Array, "b h w c"]) -> Float[Array, "b n l c"]:
        """The windows' positions, row by row; l is the window's area."""
        b, _, _, c = x.shape
        (rows, columns), w = self.grid, self.window
        x = pad_to_multiple(x, w)
        if self.shift:
            x = jnp.roll(x, (-self.shift, -self.shift), (1, 2))
        x = x.reshape(b, rows, w, columns, w, c).swapaxes(2, 3)
        return x.reshape(b, rows * columns, w * w, c)

    def join(self, x: Float[Array, "b n l c"]) -> Float[Array, "b h w c"]:
        """The map of these windows, without the padding: `cut` undone."""
        b, _, _, c = x.shape
        (rows, columns), w = self.grid, self.window
        x = x.reshape(b, rows, columns, w, w, c).swapaxes(2, 3)
        x = x.reshape(b, rows * w, columns * w, c)
        if self.shift:
            x = jnp.roll(x, (self.shift, self.shift), (1, 2))
        return x[:, : self.size[0], : self.size[1]]

    def regions(self) -> Int8[np.ndarray | Array, "n l"] | None:
        """Labels of the windows' positions: equal for those that were in one region before the roll.

        None without a shift: then every window is contiguous in the map.
        """
        if not self.shift:
            return None
        of = _regions if any(map(is_symbolic_dim, self.grid)) else _known_regions
        return of(self.grid, self.window, self.shift)


def _regions(grid: Size, window: int, shift: int) -> Int8[np.ndarray | Array, "n l"]:
    """Each axis has three parts: the windows before the last, and the two parts of the last one.

    A grid of symbolic size (`jax.export.symbolic_shape`) gives a traced array.
    """
    row, column = (
        (side >= length - window).astype(np.int8) + (side >= length - shift)
        for length in (windows * window for windows in grid)
        for side in [(jnp if is_symbolic_dim(length) else np).arange(length)]
    )
    labels = (3 * row[:, None] + column).astype(np.int8)
    labels = labels.reshape(grid[0], window, grid[1], window).swapaxes(1, 2)
    return labels.reshape(grid[0] * grid[1], window * window)


_known_regions = functools.lru_cache(maxsize=64)(_regions)  # one constant for all blocks of a stage


def pad_to_multiple(x: Float[Array, "b h w c"], multiple: int) -> Float[Array, "b H W c"]:
    """Pads with zeros at the bottom and right."""
    # Written so that a symbolic side is known to be a multiple.
    below, right = (-(-side // multiple) * multiple - side for side in x.shape[1:3])
    known = isinstance(below, int) and isinstance(right, int)
    return x if known and not below and not right else jnp.pad(x, ((0, 0), (0, below), (0, right), (0, 0)))


def position_bias(table: Float[Array, "p heads"], window: int) -> Float[Array, "heads l l"]:
    """The table of `(2 * window - 1)^2` relative positions, spread over query and key positions.

    Entry (query, key) is that of their offset `query - key`, row and column, each counted from
    `1 - window`. Written with shears instead of a lookup, whose gradient would be a scatter.
    """
    side, heads = 2 * window - 1, table.shape[-1]
    rows = _differences(table.reshape(side, side, heads))  # row of query, row of key, column offset, heads
    both = _differences(jnp.moveaxis(rows, 2, 0))  # column of query, column of key, the rows', heads
    return both.transpose(4, 2, 0, 3, 1).reshape(heads, window**2, window**2)


def _differences(x: Float[Array, "p ..."]) -> Float[Array, "w w ..."]:
    """`y[i, k] = x[i - k + w - 1]` for `p = 2w - 1`: x repeated row by row, each one place further on."""
    p, rest = x.shape[0], x.shape[1:]
    w = (p + 1) // 2
    x = jnp.concatenate([x[::-1], jnp.zeros_like(x[:1])])
    x = jnp.broadcast_to(x, (w, p + 1, *rest)).reshape(w * (p + 1), *rest)
    return x[: w * p].reshape(w, p, *rest)[:, w - 1 :]


def attend(
    qkv: Float[Array, "b n l c3"],
    bias: Float[Array, "heads l l"],
    regions: Int8[np.ndarray | Array, "n l"] | None,
) -> Float[Array, "b n l c"]:
    """Scaled dot-product attention within each window; logits and softmax float32.

    Args:
        qkv: queries, keys and values along the channels, each of all heads, in the compute dtype.
        bias: of the logits.
        regions: positions with different labels do not see each other; None: all do.
    """
    b, n, area, c = *qkv.shape[:3], qkv.shape[3] // 3
    heads = bias.shape[0]
    query, key, value = (part.reshape(b, n, area, heads, c // heads) for part in jnp.split(qkv, 3, axis=-1))
    logits = jnp.einsum("bnqhd,bnkhd->bnhqk", query, key, preferred_element_type=jnp.float32)
    logits = logits * (c // heads) ** -0.5 + bias
    if regions is not None:
        labels = jnp.asarray(regions)[:, None]
        logits = logits + jnp.where(labels[..., :, None] == labels[..., None, :], 0.0, MASKED)
    weights = jax.nn.softmax(logits).astype(value.dtype)
    return jnp.einsum("bnhqk,bnkhd->bnqhd", weights, value).reshape(b, n, area, c)
