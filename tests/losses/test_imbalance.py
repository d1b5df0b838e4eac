"""Class weights and hard pixels against NumPy in float64 and its numerical differences; their divisors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hfgd_jax import config as configs
from hfgd_jax.losses import count_pixels, cross_entropy, focal_loss, median_frequency, total_loss
from hfgd_jax.losses.hard_pixels import hardest
from hfgd_jax.models import Outputs

SIDE, CLASSES = 33, 4  # the grid's own pixels: nothing is resized
WEIGHTS = (0.25, 3.0, 7.0, 1.5)
entropy = partial(cross_entropy, geometry="align_corners")
focal = partial(focal_loss, geometry="align_corners", gamma=2.0)


def example(seed=0):
    """Logits and labels of two images, mostly ignored; class 2 is absent."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(2, SIDE, SIDE, CLASSES))
    labels = np.full((2, SIDE, SIDE), 255, np.uint8)
    labels[0, :3, :4] = rng.choice([0, 1, 3, 255], (3, 4))
    labels[1, -2:, -5:] = rng.choice([0, 3, 255], (2, 5))
    assert set(np.unique(labels)) == {0, 1, 3, 255}
    return logits, labels


def numpy_loss(logits, labels, weights=(1.0,) * CLASSES, share=1.0, gamma=0.0):
    """Takes the pixels from the hardest on until their weights make up the share of all; the last in part."""
    pixels = []
    for row, label in zip(logits.reshape(-1, CLASSES), labels.ravel(), strict=True):
        if label != 255:
            p = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
            pixels.append(((1 - p[label]) ** gamma * -np.log(p[label]), weights[label]))
    wanted = share * sum(w for _, w in pixels)
    total, left = 0.0, wanted
    for loss, w in sorted(pixels, reverse=True):
        total += min(w, left) * loss
        left -= min(w, left)
    return total / wanted if pixels else 0.0


CASES = {
    "weights": (partial(entropy, class_weights=WEIGHTS), {"weights": WEIGHTS}),
    "weights-focal": (partial(focal, class_weights=WEIGHTS), {"weights": WEIGHTS, "gamma": 2.0}),
    "hard": (partial(entropy, hard_pixels=0.3), {"share": 0.3}),
    "hard-weights": (
        partial(entropy, hard_pixels=0.6, class_weights=WEIGHTS),
        {"share": 0.6, "weights": WEIGHTS},
    ),
    "hard-almost-none": (partial(entropy, hard_pixels=0.01), {"share": 0.01}),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient(name):
    ours, arguments = CASES[name]
    logits, labels = example()
    f = jax.jit(jax.value_and_grad(lambda x: ours(x, jnp.asarray(labels))))
    value, gradient = f(jnp.asarray(logits, jnp.float32))
    assert value.dtype == jnp.float32 and value.shape == ()
    np.testing.assert_allclose(value, numpy_loss(logits, labels, **arguments), rtol=1e-5)
    assert abs(value - numpy_loss(logits, labels)) > 1e-3 * value, "the option does something"
    # The loss is a function of the labelled pixels alone, so those are what is moved, and the others' is 0.
    valid, expected, h = labels != 255, np.zeros_like(logits), 1e-6
    rows, inside = logits[valid], labels[valid]
    for place in np.ndindex(*rows.shape):
        moved = [rows.copy(), rows.copy()]
        moved[0][place] += h
        moved[1][place] -= h
        slope = (numpy_loss(moved[0], inside, **arguments) - numpy_loss(moved[1], inside, **arguments)) / (
            2 * h
        )
        expected[(*(i[place[0]] for i in np.nonzero(valid)), place[1])] = slope
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max() + 1e-8)
    assert not np.any(np.asarray(gradient)[~valid])


@pytest.mark.parametrize("name", CASES)
def test_all_ignored_and_spoiled_pixels_are_harmless(name):
    ours, _ = CASES[name]
    logits, labels = example()
    logits = jnp.asarray(logits, jnp.float32)
    value, gradient = jax.value_and_grad(ours)(logits, jnp.full(labels.shape, 255, jnp.uint8))
    assert value == 0 and not np.any(gradient)
    spoiled = jnp.where(jnp.asarray(labels == 255)[..., None], jnp.nan, logits)
    assert ours(spoiled, jnp.asarray(labels)) == ours(logits, jnp.asarray(labels))


@pytest.mark.parametrize("loss", [entropy, focal], ids=["entropy", "focal"])
def test_weights_of_one_are_none_and_a_common_factor_is_nothing(loss):
    logits, labels = example()
    logits, labels = jnp.asarray(logits, jnp.float32), jnp.asarray(labels)
    plain = loss(logits, labels)
    np.testing.assert_allclose(loss(logits, labels, class_weights=(1, 1, 1, 1)), plain, rtol=1e-6)
    twice = tuple(20 * w for w in WEIGHTS)
    weighted = loss(logits, labels, class_weights=WEIGHTS)
    np.testing.assert_allclose(loss(logits, labels, class_weights=twice), weighted, rtol=1e-6)


@pytest.mark.parametrize("loss", [entropy, focal], ids=["entropy", "focal"])
def test_two_micro_batches_add_up_to_the_batch(loss):
    """Of different numbers of pixels and different classes, with the whole batch's divisor."""
    logits, labels = example()
    logits, labels = jnp.asarray(logits, jnp.float32), jnp.asarray(labels)
    whole = count_pixels(labels, WEIGHTS)
    np.testing.assert_allclose(whole, sum((labels == k).sum() * w for k, w in enumerate(WEIGHTS)), rtol=1e-6)
    assert count_pixels(labels) == (labels != 255).sum()
    value_and_grad = jax.value_and_grad(partial(loss, class_weights=WEIGHTS))
    parts = [value_and_grad(logits[i : i + 1], labels[i : i + 1], divisor=whole) for i in range(2)]
    value, gradient = value_and_grad(logits, labels)
    np.testing.assert_allclose(sum(value for value, _ in parts), value, rtol=1e-6)
    np.testing.assert_allclose(np.concatenate([g for _, g in parts]), gradient, rtol=1e-5, atol=1e-9)


def test_each_micro_batch_keeps_its_share_of_hard_pixels():
    logits, labels = example()
    whole = float((labels != 255).sum())
    mine = partial(entropy, hard_pixels=0.4, divisor=whole)
    x, y = jnp.asarray(logits, jnp.float32), jnp.asarray(labels)
    total = sum(mine(x[i : i + 1], y[i : i + 1]) for i in range(2))
    expected = sum(
        numpy_loss(logits[i : i + 1], labels[i : i + 1], share=0.4) * (labels[i] != 255).sum() / whole
        for i in range(2)
    )
    np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_hardest_with_ties_zeros_and_nan():
    """Pixels that just reach the threshold count in part, all alike; -0 and rounding below 0 are 0."""
    keep = lambda losses, weights, share: np.asarray(  # noqa: E731
        hardest(jnp.asarray([[losses]], jnp.float32), jnp.asarray([[weights]], jnp.float32), share)
    ).ravel()
    np.testing.assert_allclose(keep([1, 5, 2, 2], [1, 1, 1, 1], 0.5), [0, 1, 0.5, 0.5])
    np.testing.assert_allclose(keep([1, 5, 2, 2], [1, 1, 4, 0], 0.5), [0, 1, 2, 0])
    np.testing.assert_allclose(keep([0, -0.0, -1e-9, 0], [1, 1, 1, 1], 0.25), [0.25] * 4)
    np.testing.assert_allclose(keep([1, np.inf, 3, np.nan], [1, 1, 1, 1], 0.75), [0, 1, 1, 1])
    np.testing.assert_array_equal(keep([1, 2, 3, 4], [0, 0, 0, 0], 0.5), [0] * 4)


def test_hardest_is_exact_on_many_pixels_and_all_devices():
    rng = np.random.default_rng(0)
    losses = rng.exponential(size=(8, 40, 50)).astype(np.float32) ** 8  # over many orders of magnitude
    weights = rng.choice([0.0, 1.0], (8, 40, 50), p=[0.2, 0.8]).astype(np.float32)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    assert mesh.size == 8
    whole = NamedSharding(mesh, PartitionSpec("data"))
    kept = np.asarray(jax.jit(hardest, static_argnums=2)(*jax.device_put((losses, weights), whole), 0.125))
    wanted = 0.125 * weights.sum()
    order = np.sort(losses[weights > 0])[::-1]
    threshold = order[int(np.ceil(wanted)) - 1]
    np.testing.assert_array_equal(kept[losses > threshold], weights[losses > threshold])
    assert not np.any(kept[losses < threshold])
    np.testing.assert_allclose(kept.sum(), wanted, rtol=1e-6)


def test_total_weights_every_entropy_and_mines_in_teacher_and_student():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    heads = {
        "teacher": draw(2, 3, 3, CLASSES),
        "student": draw(2, 17, 17, CLASSES),
        "probe": draw(2, 3, 3, CLASSES),
        "regions": draw(2, 3, 3, CLASSES),
    }
    outputs = Outputs(heads["student"], heads["teacher"], heads["probe"], region_logits=heads["regions"])
    labels = jnp.asarray(rng.choice([0, 1, 3, 255], (2, 60, 64)), jnp.uint8)
    settings = configs.default().loss
    settings.update({"class_weights": WEIGHTS, "hard_pixels": 0.5})
    parts = total_loss(outputs, labels, settings, num_classes=CLASSES, geometry="align_corners")[1]
    expected = {
        name: entropy(
            x, labels, class_weights=WEIGHTS, hard_pixels=0.5 if name in ("teacher", "student") else 1.0
        )
        for name, x in heads.items()
    }
    assert parts.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-6, err_msg=name)
    settings.update({"hard_pixels": 1.0, "focal_gamma": 2.0})
    parts = total_loss(outputs, labels, settings, num_classes=CLASSES, geometry="align_corners")[1]
    for name, x in heads.items():
        np.testing.assert_allclose(parts[name], focal(x, labels, class_weights=WEIGHTS), rtol=1e-6)
    settings.update({"class_weights": (), "balance": "median_frequency"})
    with pytest.raises(ValueError, match="have not been computed"):
        total_loss(outputs, labels, settings, num_classes=CLASSES, geometry="align_corners")


def test_median_frequency():
    """By hand: 0.8, 0.2, 0.05 and 0.001 of the images that have the class; one class is absent."""
    pixels, beside = np.array([800, 200, 0, 25, 1]), np.array([1000, 1000, 0, 500, 1000])
    median = (0.2 + 0.05) / 2
    weights = median_frequency(pixels, beside)
    np.testing.assert_allclose(weights, [median / 0.8, median / 0.2, 1.0, median / 0.05, 10.0])
    assert all(type(w) is float for w in weights)
    assert median_frequency(np.zeros(3, int), np.zeros(3, int)) == (1.0, 1.0, 1.0)
