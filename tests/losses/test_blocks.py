"""Losses in blocks of rows are those of all logits at the pixels, and take a fraction of the memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hfgd_jax.geometry import feature_size, grid_size, row_blocks
from hfgd_jax.losses import blocks, cross_entropy, focal_loss

SIZE, CLASSES = (70, 45), 5
WHOLE = 2**62
LOSSES = {
    "cross_entropy": cross_entropy,
    "class_weights": partial(cross_entropy, class_weights=(1.0, 0.5, 3.0, 0.25, 2.0)),
    "hard_pixels": partial(cross_entropy, hard_pixels=0.3),
    "focal": partial(focal_loss, gamma=2.0),
}


def example(geometry, stride, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    low = feature_size(grid_size(SIZE, geometry), stride, geometry)
    logits = jnp.asarray(3 * rng.normal(size=(2, *low, CLASSES)), dtype)
    labels = rng.choice([0, 1, 2, 3, 4, 255], size=(2, *SIZE)).astype(np.uint8)
    return logits, jnp.asarray(labels)


@pytest.fixture
def in_blocks(monkeypatch):
    """A function that gives value and gradient with blocks of at most so many logits."""

    def compute(loss, limit, *operands):
        monkeypatch.setattr(blocks, "BLOCK", limit)
        return jax.jit(jax.value_and_grad(loss))(*operands)  # a new function: nothing compiled is used again

    return compute


@pytest.mark.parametrize(
    ("name", "geometry", "stride", "limit"),
    [(name, geometry, 4, 9000) for name in LOSSES for geometry in ("align_corners", "half_pixel")]
    + [("cross_entropy", "half_pixel", 2, 1), ("cross_entropy", "align_corners", 32, 1)],
)
def test_value_and_gradient_are_those_of_the_whole(name, geometry, stride, limit, in_blocks):
    logits, labels = example(geometry, stride)
    loss = lambda logits: LOSSES[name](logits, labels, geometry=geometry) * 3  # noqa: E731
    value, gradient = in_blocks(loss, WHOLE, logits)
    assert row_blocks(logits.shape, SIZE, limit, geometry=geometry).count > 1
    found, found_gradient = in_blocks(loss, limit, logits)
    np.testing.assert_allclose(found, value, rtol=1e-5)
    np.testing.assert_allclose(found_gradient, gradient, rtol=1e-5, atol=1e-5 * np.abs(gradient).max())


def test_logits_keep_their_dtype_and_pixels_of_weight_0_may_be_nan(in_blocks):
    logits, labels = example("align_corners", 4, jnp.bfloat16)
    labels = labels.at[1].set(255)
    logits = logits.at[1].set(jnp.nan)
    loss = lambda logits: cross_entropy(logits, labels, geometry="align_corners")  # noqa: E731
    value, gradient = in_blocks(loss, WHOLE, logits)
    found, found_gradient = in_blocks(loss, 1, logits)
    assert value.dtype == jnp.float32 and found_gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(found, value, rtol=1e-5)
    np.testing.assert_allclose(
        found_gradient[0].astype(np.float32), gradient[0].astype(np.float32), rtol=1e-2, atol=1e-6
    )


def test_memory_at_171_classes_is_an_eighth(in_blocks):
    """Sixteen crops of 513x513; compiled alone."""
    shapes = (
        jax.ShapeDtypeStruct((16, 129, 129, 171), jnp.float32),
        jax.ShapeDtypeStruct((16, 513, 513), jnp.uint8),
    )

    def memory(limit):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(blocks, "BLOCK", limit)
            loss = lambda logits, labels: cross_entropy(logits, labels, geometry="align_corners")  # noqa: E731
            program = jax.jit(jax.value_and_grad(loss)).lower(*shapes).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert 8 * memory(blocks.BLOCK) < memory(WHOLE)
