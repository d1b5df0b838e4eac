"""Focal and Dice losses against NumPy in float64 and its numerical differences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hfgd_jax.losses import cross_entropy, dice_loss, focal_loss

SIDE, CLASSES = 33, 4  # the grid's own pixels: nothing is resized
focal = partial(focal_loss, geometry="align_corners")
dice = partial(dice_loss, geometry="align_corners")


def softmax(row):
    e = np.exp(row - row.max())
    return e / e.sum()


def numpy_focal(logits, labels, gamma, ignore=255):
    total, count = 0.0, 0
    for row, label in zip(logits.reshape(-1, CLASSES), labels.ravel(), strict=True):
        if label != ignore:
            p = softmax(row)[label]
            total -= (1 - p) ** gamma * np.log(p)
            count += 1
    return total / max(count, 1)


def numpy_dice(logits, labels, ignore=255):
    overlap, squares, counts = np.zeros(CLASSES), np.zeros(CLASSES), np.zeros(CLASSES)
    for row, label in zip(logits.reshape(-1, CLASSES), labels.ravel(), strict=True):
        if label != ignore:
            p = softmax(row)
            overlap[label] += p[label]
            squares += p**2
            counts[label] += 1
    losses = [1 - (2 * overlap[k] + 1) / (squares[k] + counts[k] + 1) for k in range(CLASSES) if counts[k]]
    return sum(losses) / max(len(losses), 1)


def example(seed=0, scale=2.0):
    """Logits and labels of two images, mostly ignored; class 2 is absent, and class 1 from one image."""
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=(2, SIDE, SIDE, CLASSES))
    labels = np.full((2, SIDE, SIDE), 255, np.uint8)
    labels[0, :3, :4] = rng.choice([0, 1, 3, 255], (3, 4))
    labels[1, -2:, -5:] = rng.choice([0, 3, 255], (2, 5))
    assert set(np.unique(labels)) == {0, 1, 3, 255}
    return logits, labels


CASES = {
    "focal-0.5": (partial(focal, gamma=0.5), partial(numpy_focal, gamma=0.5)),
    "focal-2": (partial(focal, gamma=2.0), partial(numpy_focal, gamma=2.0)),
    "dice": (dice, numpy_dice),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient(name):
    ours, reference = CASES[name]
    logits, labels = example()
    f = jax.jit(jax.value_and_grad(lambda x: ours(x, jnp.asarray(labels))))
    value, gradient = f(jnp.asarray(logits, jnp.float32))
    assert value.dtype == jnp.float32 and value.shape == ()
    np.testing.assert_allclose(value, reference(logits, labels), rtol=1e-5)
    # The loss is a function of the labelled pixels alone, so those are what is moved, and the others' is 0.
    valid, expected, h = labels != 255, np.zeros_like(logits), 1e-5
    inside = logits[valid][None], labels[valid][None]
    for pixel, k in np.ndindex(*inside[0].shape[1:]):
        moved = [inside[0].copy(), inside[0].copy()]
        moved[0][0, pixel, k] += h
        moved[1][0, pixel, k] -= h
        slope = (reference(moved[0], inside[1]) - reference(moved[1], inside[1])) / (2 * h)
        expected[(*(i[pixel] for i in np.nonzero(valid)), k)] = slope
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max() + 1e-8)
    assert not np.any(np.asarray(gradient)[~valid])


@pytest.mark.parametrize("divisor", [None, 50.0])
def test_gamma_0_is_cross_entropy(divisor):
    logits, labels = example()
    logits, labels = jnp.asarray(logits, jnp.float32), jnp.asarray(labels)
    value, gradient = jax.value_and_grad(focal)(logits, labels, gamma=0.0, divisor=divisor)
    plain = partial(cross_entropy, geometry="align_corners", divisor=divisor)
    expected, expected_gradient = jax.value_and_grad(plain)(logits, labels)
    assert value == expected != 0
    np.testing.assert_array_equal(gradient, expected_gradient)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("margin", [15.0, 40.0, 1e4])
def test_focal_loss_of_the_surely_right_and_the_surely_wrong(gamma, margin):
    """p is 1 or 0 to the last bit: finite values and gradients, none and that of the cross-entropy."""
    labels = jnp.zeros((1, SIDE, SIDE), jnp.uint8)
    f = jax.value_and_grad(lambda x: focal(x, labels, gamma=gamma))
    right = jnp.zeros((1, SIDE, SIDE, CLASSES)).at[..., 0].set(margin)
    value, gradient = f(right)
    assert 0 <= value < 1e-6 and np.abs(gradient).max() < 1e-6
    value, gradient = f(-right)
    np.testing.assert_allclose(value, margin + np.log(CLASSES - 1), rtol=1e-5)
    np.testing.assert_allclose(gradient.sum(axis=(0, 1, 2))[0], -1, rtol=1e-3)


def test_dice_of_a_perfect_and_of_a_wrong_prediction():
    labels = np.random.default_rng(0).choice([0, 1, 3], (1, SIDE, SIDE)).astype(np.uint8)
    right = 50.0 * np.eye(CLASSES, dtype=np.float32)[labels]
    assert abs(dice(jnp.asarray(right), jnp.asarray(labels))) < 1e-5
    wrong = jnp.zeros((1, SIDE, SIDE, CLASSES)).at[..., 2].set(50.0)
    assert dice(wrong, jnp.asarray(labels)) > 0.99


def test_dice_is_of_the_whole_batch():
    """Sums over both images, not a mean of the images' losses."""
    logits, labels = example()
    logits = jnp.asarray(logits, jnp.float32)
    whole = dice(logits, jnp.asarray(labels))
    halves = [dice(logits[i : i + 1], jnp.asarray(labels[i : i + 1])) for i in range(2)]
    assert abs(whole - sum(halves) / 2) > 1e-3


def test_both_read_logits_at_the_pixels():
    """Logits at OS=4 of the grid that holds 30x40 pixels: as if enlarged and cropped before."""
    rng = np.random.default_rng(0)
    coarse = jnp.asarray(rng.normal(size=(1, 9, 17, CLASSES)), jnp.float32)
    rows, columns = (
        np.maximum(1 - np.abs(np.arange(n)[:, None] / 4 - np.arange(m)), 0) for n, m in ((33, 9), (65, 17))
    )
    pixels = np.einsum("yh,xw,bhwk->byxk", rows, columns, coarse)[:, :30, :40]
    labels = rng.choice([0, 1, 3, 255], (1, 30, 40)).astype(np.uint8)
    np.testing.assert_allclose(
        focal(coarse, jnp.asarray(labels), gamma=2.0), numpy_focal(pixels, labels, 2.0), rtol=1e-5
    )
    np.testing.assert_allclose(dice(coarse, jnp.asarray(labels)), numpy_dice(pixels, labels), rtol=1e-5)


@pytest.mark.parametrize("loss", [partial(focal, gamma=2.0), dice], ids=["focal", "dice"])
def test_ignored_pixels(loss):
    """Ignored pixels change nothing, whatever their logits; without labels loss and gradients are 0."""
    logits, labels = example()
    logits = jnp.asarray(logits, jnp.float32)
    spoiled = jnp.where(jnp.asarray(labels == 255)[..., None], jnp.nan, logits)
    assert loss(spoiled, jnp.asarray(labels)) == loss(logits, jnp.asarray(labels))
    value, gradient = jax.value_and_grad(loss)(logits, jnp.full(labels.shape, 255, jnp.uint8))
    assert value == 0 and not np.any(gradient)
    low = loss(logits.astype(jnp.bfloat16), jnp.asarray(labels))
    assert low.dtype == jnp.float32


def test_focal_loss_takes_the_whole_batchs_divisor():
    logits, labels = example()
    logits, valid = jnp.asarray(logits, jnp.float32), float((labels != 255).sum())
    halves = [
        focal(logits[i : i + 1], jnp.asarray(labels[i : i + 1]), gamma=2.0, divisor=valid) for i in range(2)
    ]
    np.testing.assert_allclose(sum(halves), focal(logits, jnp.asarray(labels), gamma=2.0), rtol=1e-6)
