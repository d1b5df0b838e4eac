"""Cross-entropy and the weighted total."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hfgd_jax import config as configs
from hfgd_jax import geometry
from hfgd_jax.data import labels as label_tables
from hfgd_jax.losses import car, cross_entropy, dice_loss, focal_loss, loss_divisor, total_loss
from hfgd_jax.models import Outputs


def reference(logits, labels, ignore=255):
    """Float64, at the logits' own size."""
    logits, total, count = np.asarray(logits, np.float64), 0.0, 0
    for row, label in zip(logits.reshape(-1, logits.shape[-1]), labels.ravel(), strict=True):
        if label != ignore:
            total += np.log(np.exp(row - row.max()).sum()) + row.max() - row[label]
            count += 1
    return total / max(count, 1)


def example(side=33, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    logits = jnp.asarray(rng.normal(size=(2, side, side, classes)), jnp.float32)
    labels = rng.choice([0, 1, 3, 255], size=(2, side, side)).astype(np.uint8)
    return logits, labels


def test_the_ignored_label_is_that_of_the_data():
    assert geometry.IGNORE == label_tables.IGNORE == 255


def test_cross_entropy_at_the_pixels():
    logits, labels = example()
    value = cross_entropy(logits, jnp.asarray(labels), geometry="align_corners")
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, reference(logits, labels), rtol=1e-5)
    low = cross_entropy(logits.astype(jnp.bfloat16), jnp.asarray(labels), geometry="align_corners")
    assert low.dtype == jnp.float32


def test_cross_entropy_resizes_and_crops():
    """Logits at OS=4 of the grid that holds 30x40 pixels."""
    labels = np.random.default_rng(0).integers(0, 4, (1, 30, 40)).astype(np.uint8)
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(1, 9, 17, 4)), jnp.float32)
    t = np.arange(33) / 4
    low = np.minimum(t.astype(int), 7)
    rows = np.eye(9)[low] * (1 - t + low)[:, None] + np.eye(9)[low + 1] * (t - low)[:, None]
    t = np.arange(65) / 4
    low = np.minimum(t.astype(int), 15)
    columns = np.eye(17)[low] * (1 - t + low)[:, None] + np.eye(17)[low + 1] * (t - low)[:, None]
    pixels = np.einsum("yh,xw,bhwk->byxk", rows, columns, np.asarray(logits))[:, :30, :40]
    value = cross_entropy(logits, jnp.asarray(labels), geometry="align_corners")
    np.testing.assert_allclose(value, reference(pixels, labels), rtol=1e-5)


def test_cross_entropy_gradient_is_softmax_minus_one_hot():
    logits, labels = example(33)
    gradient = jax.grad(lambda x: cross_entropy(x, jnp.asarray(labels), geometry="align_corners"))(logits)
    valid = labels != 255
    one_hot = np.eye(4)[np.where(valid, labels, 0)]
    expected = (jax.nn.softmax(logits) - one_hot) * valid[..., None] / valid.sum()
    np.testing.assert_allclose(gradient, expected, atol=1e-7)


def test_ignored_pixels_and_the_divisor():
    logits, labels = example()
    spoiled = jnp.where(jnp.asarray(labels == 255)[..., None], jnp.nan, logits)
    f = lambda x, **kw: cross_entropy(x, jnp.asarray(labels), geometry="align_corners", **kw)  # noqa: E731
    assert f(spoiled) == f(logits)
    valid = int((labels != 255).sum())
    np.testing.assert_allclose(f(logits, divisor=2 * valid), f(logits) / 2, rtol=1e-6)
    # Two halves with the whole batch's divisor add up to the batch: what accumulation does.
    halves = sum(
        cross_entropy(
            logits[i : i + 1], jnp.asarray(labels[i : i + 1]), geometry="align_corners", divisor=valid
        )
        for i in range(2)
    )
    np.testing.assert_allclose(halves, f(logits), rtol=1e-6)


def outputs_of(seed=0, classes=4):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return Outputs(draw(2, 17, 17, classes), draw(2, 3, 3, classes), draw(2, 3, 3, classes), draw(2, 3, 3, 6))


def test_total_is_the_weighted_sum_of_its_parts():
    outputs, loss_config = outputs_of(), configs.default().loss
    loss_config.update({"teacher": 2.0, "student": 3.0, "car": 5.0, "probe": 7.0})
    labels = jnp.asarray(np.random.default_rng(1).choice([0, 1, 3, 255], (2, 60, 64)), jnp.uint8)
    total, parts = total_loss(outputs, labels, loss_config, num_classes=4, geometry="align_corners")
    ce = {
        name: cross_entropy(logits, labels, geometry="align_corners")
        for name, logits in (
            ("teacher", outputs.guide_logits),
            ("student", outputs.logits),
            ("probe", outputs.probe_logits),
        )
    }
    # The grid of 60x64 is 65x65: rows 60 and more are ignored, and the labels are those of every 32nd pixel.
    shrunk = np.full((2, 3, 3), 255, np.uint8)
    shrunk[:, :2, :2] = np.asarray(labels)[:, ::32, ::32]
    x, y = outputs.car_features, jnp.asarray(shrunk)
    centers = car.class_centers(x, y, 4)
    expected = ce | {
        "car_intra": car.intra_class_loss(x, y, centers),
        "car_inter_center": car.inter_class_center_loss(centers),
        "car_inter_pixel": car.inter_class_pixel_loss(x, y, centers),
    }
    assert parts.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-6, err_msg=name)
    weights = {"teacher": 2, "student": 3, "probe": 7}
    want = sum(float(value) * weights.get(name, 5) for name, value in expected.items())
    np.testing.assert_allclose(total, want, rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_a_divisor_of_all_pixels_counts_the_ignored_ones_as_zero(gamma):
    """Of every cross-entropy and of none else; two micro-batches with the whole's add up to it."""
    outputs, loss_config = outputs_of(), configs.default().loss
    loss_config.focal_gamma = gamma
    labels = jnp.asarray(np.random.default_rng(1).choice([0, 1, 255], (2, 65, 65)), jnp.uint8).at[1].set(255)
    value = lambda o, y, **kw: total_loss(  # noqa: E731
        o, y, loss_config, num_classes=4, geometry="align_corners", **kw
    )
    _, valid = value(outputs, labels)
    loss_config.divisor = "all"
    whole, (_, found) = loss_divisor(labels, loss_config), value(outputs, labels)
    assert whole == labels.size and whole.dtype == jnp.float32
    for name in ("teacher", "student", "probe"):
        np.testing.assert_allclose(found[name], valid[name] * (labels != 255).mean(), rtol=1e-5)
    assert all(found[name] == valid[name] for name in found if name.startswith("car"))
    halves = [
        value(jax.tree.map(lambda x, i=i: x[i : i + 1], outputs), labels[i : i + 1], divisor=whole / 2)[1]
        for i in range(2)
    ]
    assert halves[1]["student"] == 0  # all of it is ignored
    np.testing.assert_allclose(halves[0]["student"] / 2, found["student"], rtol=1e-5)


def test_regions_dice_and_focal():
    """OCR's regions are one of the cross-entropies; Dice goes with teacher and student alone."""
    full = outputs_of()
    outputs = full.replace(car_features=None, region_logits=full.probe_logits + 1.5 * full.guide_logits)
    labels = jnp.asarray(np.random.default_rng(1).choice([0, 1, 3, 255], (2, 60, 64)), jnp.uint8)
    heads = {
        "teacher": outputs.guide_logits,
        "student": outputs.logits,
        "probe": outputs.probe_logits,
        "regions": outputs.region_logits,
    }
    weights = {"teacher": 2.0, "student": 3.0, "probe": 5.0, "regions": 7.0}
    for gamma, dice in ((0.0, 0.0), (0.0, 11.0), (2.0, 11.0)):
        loss_config = configs.default().loss
        assert loss_config.regions == 0.4
        loss_config.update(weights | {"dice": dice, "focal_gamma": gamma})
        entropy = partial(focal_loss, gamma=gamma) if gamma else cross_entropy
        expected = {name: entropy(x, labels, geometry="align_corners") for name, x in heads.items()}
        if dice:
            for name in ("teacher", "student"):
                expected[f"{name}_dice"] = dice_loss(heads[name], labels, geometry="align_corners")
        total, parts = total_loss(outputs, labels, loss_config, num_classes=4, geometry="align_corners")
        assert parts.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(parts[name], value, rtol=1e-6, err_msg=name)
        want = sum(float(value) * weights.get(name, dice) for name, value in expected.items())
        np.testing.assert_allclose(total, want, rtol=1e-5)


def test_absent_parts_are_left_out():
    outputs = Outputs(outputs_of().logits)
    labels = jnp.zeros((2, 65, 65), jnp.uint8)
    total, parts = total_loss(
        outputs, labels, configs.default().loss, num_classes=4, geometry="align_corners"
    )
    assert list(parts) == ["student"] and total == parts["student"]


@pytest.mark.parametrize(
    "geometry, side, divisor",
    [("align_corners", 65, "valid"), ("align_corners", 65, "all"), ("half_pixel", 64, "valid")],
)
def test_all_ignored_batch(geometry, side, divisor):
    k = side // 4 + side % 2
    full = outputs_of()
    outputs = full.replace(
        logits=full.logits[:, :k, :k],
        **(
            {}
            if side == 65
            else {
                "guide_logits": full.guide_logits[:, :2, :2],
                "probe_logits": full.probe_logits[:, :2, :2],
                "car_features": full.car_features[:, :2, :2],
            }
        ),
    )
    labels = jnp.full((2, side, side), 255, jnp.uint8)
    loss_config = configs.default().loss
    loss_config.divisor = divisor
    f = lambda o: total_loss(o, labels, loss_config, num_classes=4, geometry=geometry)  # noqa: E731
    (total, parts), gradient = jax.jit(jax.value_and_grad(f, has_aux=True))(outputs)
    assert np.isfinite(total)
    assert parts["teacher"] == parts["student"] == parts["probe"] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert not np.any(gradient.logits)


def test_logits_of_bfloat16_are_scored_in_float32():
    logits, labels = example()
    rough, labels = logits.astype(jnp.bfloat16), jnp.asarray(labels)
    one, two = (
        cross_entropy(x, labels, geometry="align_corners") for x in (rough, rough.astype(jnp.float32))
    )
    assert one.dtype == jnp.float32 and one == two
