"""CAR values and gradients against NumPy in float64 and its numerical differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hfgd_jax.losses import car

EPS = 1e-7


def numpy_centers(x, y, k):
    out = np.zeros((k, x.shape[-1]))
    for c in range(k):
        if (y == c).any():
            out[c] = x[y == c].mean(axis=0)
    return out


def softmax(e):
    e = np.exp(e - e.max())
    return e / e.sum()


def numpy_intra(x, y, stopped):
    total = 0.0
    for pixel, label in zip(x.reshape(-1, x.shape[-1]), y.ravel(), strict=True):
        if label != 255:
            total += np.abs(pixel - stopped[label]).sum()
    return max((total / x.size) ** 2, 1e-5)


def numpy_rows(rows, own, threshold):
    sums = []
    for row, label in zip(rows, own, strict=True):
        total = sum(a - threshold for j, a in enumerate(row) if j != label and a > threshold)
        sums.append(min(max(total, EPS), 1 - EPS))
    return np.mean(sums) ** 2


def numpy_center_loss(centers, stopped):
    k, c = centers.shape
    rows = [softmax(centers[i] @ stopped.T / np.sqrt(c)) for i in range(k)]
    return numpy_rows(rows, range(k), 0.5 / (k - 1))


def numpy_pixel_loss(x, y, stopped):
    k, c = stopped.shape
    rows = []
    for pixel, label in zip(x.reshape(-1, c), y.ravel(), strict=True):
        energy = stopped @ pixel
        if label != 255:
            energy[label] = stopped[label] @ stopped[label]
        rows.append(softmax(energy / np.sqrt(c)))
    return numpy_rows(rows, y.ravel(), 0.25 / (k - 1))


def numerical_gradient(f, x, h=1e-6):
    gradient = np.zeros_like(x)
    for i in np.ndindex(*x.shape):
        for sign in (1, -1):
            moved = x.copy()
            moved[i] += sign * h
            gradient[i] += sign * f(moved) / (2 * h)
    return gradient


def example(seed, scale=1.0, k=5):
    """Features, labels with ignored pixels and two absent classes."""
    rng = np.random.default_rng(seed)
    x = scale * rng.normal(size=(2, 3, 4, 6))
    y = rng.choice([0, 2, 3, 255], size=(2, 3, 4)).astype(np.uint8)
    return x, y, k


LOSSES = {
    "intra": (
        lambda x, y, k: car.intra_class_loss(x, y, car.class_centers(x, y, k)),
        lambda x, y, k, stopped: numpy_intra(x, y, stopped),
    ),
    "inter_center": (
        lambda x, y, k: car.inter_class_center_loss(car.class_centers(x, y, k)),
        lambda x, y, k, stopped: numpy_center_loss(numpy_centers(x, y, k), stopped),
    ),
    "inter_pixel": (
        lambda x, y, k: car.inter_class_pixel_loss(x, y, car.class_centers(x, y, k)),
        lambda x, y, k, stopped: numpy_pixel_loss(x, y, stopped),
    ),
}


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient(name, scale):
    ours, reference = LOSSES[name]
    x, y, k = example(int(scale * 10), scale)
    value, gradient = jax.jit(jax.value_and_grad(lambda x: ours(x, jnp.asarray(y), k)))(x.astype(np.float32))
    stopped = numpy_centers(x, y, k)
    assert value.dtype == jnp.float32 and value.shape == ()
    np.testing.assert_allclose(value, reference(x, y, k, stopped), rtol=2e-5)
    expected = numerical_gradient(lambda x: reference(x, y, k, stopped), x)
    assert np.abs(expected).max() > 1e-4
    np.testing.assert_allclose(gradient, expected, atol=2e-5 * np.abs(expected).max() + 1e-8)


def test_centers():
    x, y, k = example(0)
    centers = car.class_centers(jnp.asarray(x, jnp.bfloat16), jnp.asarray(y), k)
    assert centers.dtype == jnp.float32
    centers = car.class_centers(jnp.asarray(x, jnp.float32), jnp.asarray(y), k)
    np.testing.assert_allclose(centers, numpy_centers(x, y, k), atol=1e-6)
    assert not np.any(centers[1]) and not np.any(centers[4])


def test_ignored_pixels():
    """They pull no centre, have no intra-class distance, but count as 'other' in the pixel loss."""
    x, y, k = example(1, 3.0)
    centers = jnp.asarray(numpy_centers(x, y, k), jnp.float32)
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y)
    ignored = np.asarray(y) == 255
    assert not np.any(jax.grad(lambda x: car.intra_class_loss(x, y, centers))(x)[ignored])
    assert np.any(jax.grad(lambda x: car.inter_class_pixel_loss(x, y, centers))(x)[ignored])
    moved = jnp.where(ignored[..., None], x + 5, x)
    assert car.intra_class_loss(moved, y, centers) == car.intra_class_loss(x, y, centers)


def test_clips_stop_the_gradient():
    """Identical centres are far below no threshold; equal features sit on the intra-class floor."""
    y = jnp.asarray(np.tile([0, 1], (1, 2, 2)), jnp.uint8)
    x = jnp.ones((1, 2, 4, 3))
    f = lambda x: car.intra_class_loss(x, y, car.class_centers(x, y, 2))  # noqa: E731
    value, gradient = jax.value_and_grad(f)(x)
    assert value == jnp.float32(1e-5) and not np.any(gradient)
    # Well separated centres: nothing exceeds the threshold, the sum is clipped to eps, no gradient.
    centers = 20.0 * jnp.eye(3)
    value, gradient = jax.value_and_grad(car.inter_class_center_loss)(centers)
    np.testing.assert_allclose(value, EPS**2, rtol=1e-4)
    assert not np.any(gradient)


def test_all_ignored_is_finite():
    x, y = jnp.asarray(example(2)[0], jnp.float32), jnp.full((2, 3, 4), 255, jnp.uint8)
    for name, (ours, _) in LOSSES.items():
        value, gradient = jax.value_and_grad(lambda x, f=ours: f(x, y, 5))(x)
        assert np.isfinite(value) and np.isfinite(gradient).all(), name
