"""hfgd_jax.evaluation.metrics, against counting by hand."""

import json
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hfgd_jax.evaluation import metrics


def _loop(labels, predictions, num_classes):
    """The independent count: a Python loop over pixels."""
    matrix = [[0] * num_classes for _ in range(num_classes)]
    for truth, predicted in zip(labels.ravel().tolist(), predictions.ravel().tolist(), strict=True):
        if truth != 255:
            matrix[truth][predicted] += 1
    return np.array(matrix)


@pytest.fixture(scope="module")
def maps():
    """Labels with a band of ignored pixels and no class 3, predictions with neither class 3 nor class 5."""
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 2, 4, 5, 6], size=(3, 19, 23)).astype(np.uint8)
    labels[:, :4] = 255
    labels[1] = 255
    predictions = rng.choice([0, 1, 2, 4, 6], size=labels.shape).astype(np.uint8)
    return labels, predictions


def _independent_mean_iou(labels, predictions, num_classes):
    """Another way to it: sets of pixels, class by class, in exact fractions."""
    scores = []
    valid = labels != 255
    for k in range(num_classes):
        truth, seen = valid & (labels == k), valid & (predictions == k)
        if (truth | seen).any():
            scores.append(Fraction(int((truth & seen).sum()), int((truth | seen).sum())))
    return float(sum(scores) / len(scores))


@pytest.mark.parametrize("seed", range(4))
def test_mean_iou_equals_an_independent_one(seed):
    rng = np.random.default_rng(seed)
    num_classes = int(rng.integers(3, 30))
    present = rng.permutation(num_classes)[: num_classes - 2]  # two classes are absent
    labels = rng.choice([*present, 255], size=(2, 31, 47)).astype(np.uint8)
    right = rng.random(labels.shape) < 0.6
    predictions = np.where(right & (labels != 255), labels, rng.choice(present, size=labels.shape))
    predictions = predictions.astype(np.uint8)
    matrix = np.asarray(metrics.confusion_matrix(labels, predictions, num_classes))
    got = metrics.summarize(matrix, [f"class {k}" for k in range(num_classes)])
    assert got["mIoU"] == pytest.approx(_independent_mean_iou(labels, predictions, num_classes), abs=1e-9)
    assert sum(value is None for value in got["per_class"].values()) == 2


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_matrix_equals_a_loop_over_pixels(maps, dtype):
    labels, predictions = maps
    got = metrics.confusion_matrix(labels.astype(dtype), predictions.astype(dtype), 7)
    np.testing.assert_array_equal(got, _loop(labels, predictions, 7))
    assert got.dtype == np.int32
    assert got.sum() == (labels != 255).sum()


def test_one_hot_products_count_the_same_as_scattering(maps):
    labels, predictions = (x.astype(np.int32) for x in maps)
    got = metrics._by_products(jnp.asarray(labels), jnp.asarray(predictions), 7)
    np.testing.assert_array_equal(got, _loop(labels, predictions, 7))


def test_matrix_under_jit_with_a_sharded_batch(maps):
    labels, predictions = maps
    devices = jax.devices()[:3] if len(jax.devices()) >= 3 else jax.devices()[:1]
    mesh = jax.sharding.Mesh(np.array(devices), "data")
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    count = jax.jit(metrics.confusion_matrix, static_argnums=2)
    got = count(jax.device_put(labels, where), jax.device_put(predictions, where), 7)
    np.testing.assert_array_equal(got, _loop(labels, predictions, 7))


def test_counts_beyond_float32_are_exact():
    labels = np.zeros((1, 4097, 4096), np.uint8)  # 2**24 + 4096 pixels
    labels[0, 0, 0] = 255
    matrix = np.asarray(metrics.confusion_matrix(labels, np.zeros_like(labels), 2))
    assert matrix[0, 0] == 4097 * 4096 - 1


def test_ids_out_of_range_are_ignored_in_labels_and_clipped_in_predictions(maps):
    labels = np.array([[[0, 2, 200, 254, -1]]], np.int32)
    predictions = np.array([[[3, 99, 0, 0, 0]]], np.int32)
    matrix = np.asarray(metrics.confusion_matrix(labels, predictions, 3))
    want = np.zeros((3, 3), int)
    want[0, 2] = want[2, 2] = 1  # an id above the last counts as the last; labels outside are ignored
    np.testing.assert_array_equal(matrix, want)


@pytest.mark.usefixtures("unchecked")
def test_shapes_must_agree():
    with pytest.raises(ValueError, match="differ in shape"):
        metrics.confusion_matrix(np.zeros((1, 2, 3), int), np.zeros((1, 3, 2), int), 2)


def test_summary_by_hand():
    # rows are truth: a 3 right, 1 taken for b; b 2 right; c absent everywhere; d only predicted (2, truth b)
    matrix = np.array([[3, 1, 0, 0], [0, 2, 0, 2], [0, 0, 0, 0], [0, 0, 0, 0]])
    got = metrics.summarize(matrix, ["a", "b", "c", "d"])
    assert got["per_class"] == {"a": 3 / 4, "b": 2 / 5, "c": None, "d": 0.0}
    assert got["mIoU"] == pytest.approx((3 / 4 + 2 / 5 + 0) / 3)  # d was predicted: it is in the mean
    assert got["pixel_accuracy"] == pytest.approx(5 / 8)
    assert got["mean_accuracy"] == pytest.approx((3 / 4 + 2 / 4) / 2)  # over the labelled classes
    assert list(got) == ["mIoU", "pixel_accuracy", "mean_accuracy", "per_class"]


def test_truth_and_prediction_are_not_interchanged():
    got = metrics.summarize(np.array([[8, 2], [0, 0]]), ["a", "b"])
    assert got["mean_accuracy"] == pytest.approx(0.8)
    assert metrics.summarize(np.array([[8, 0], [2, 0]]), ["a", "b"])["mean_accuracy"] == pytest.approx(0.5)


def test_empty_matrix_gives_nulls():
    got = metrics.summarize(np.zeros((2, 2), np.int32), ["a", "b"])
    text = json.dumps(got, allow_nan=False)
    assert text == (
        '{"mIoU": null, "pixel_accuracy": null, "mean_accuracy": null, "per_class": {"a": null, "b": null}}'
    )
    assert "n/a" in metrics.table(np.zeros((2, 2), np.int32), ["a", "b"])


def test_int32_matrices_do_not_overflow():
    matrix = np.full((2, 2), 2**31 - 1, np.int32)
    got = metrics.summarize(matrix, ["a", "b"])
    assert got["mIoU"] == pytest.approx(1 / 3)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("matrix", [np.zeros((2, 3), int), np.zeros((3, 3), int), np.zeros((2, 2))])
def test_wrong_matrices_are_refused(matrix):
    with pytest.raises(ValueError, match="want integers for 2 classes"):
        metrics.summarize(matrix, ["a", "b"])


def test_the_table_has_every_class_and_the_means():
    matrix = np.array([[30_000, 10_000, 0], [0, 20_000, 0], [0, 0, 0]])
    lines = metrics.table(matrix, ["road", "a long name", "sky"]).splitlines()
    assert lines[0].split() == ["class", "IoU", "%", "accuracy", "%", "labelled", "px", "predicted", "px"]
    assert lines[2].split() == ["road", "75.00", "75.00", "40,000", "30,000"]
    assert lines[3].split() == ["a", "long", "name", "66.67", "100.00", "20,000", "30,000"]
    assert lines[4].split() == ["sky", "n/a", "n/a", "0", "0"]
    assert lines[6].split() == ["all", "70.83", "87.50", "60,000", "60,000"]
    assert lines[7] == "pixel accuracy %: 83.33"
    assert len({len(line) for line in lines[:7]}) == 1


def test_table_with_more_columns():
    matrix = np.array([[30, 10], [0, 20]])
    lines = metrics.table(matrix, ["a", "b"], {"boundary_IoU": [0.5, None]}).splitlines()
    assert lines[0].endswith("boundary IoU %")
    assert [line.split()[-1] for line in lines[2:4]] == ["50.00", "n/a"]
    assert lines[5].split()[-1] == "50.00"
    assert len({len(line) for line in lines[:6]}) == 1


def test_counts_beyond_32_bits_are_summed_whole():
    matrix = np.array([[3 * 2**31, 2**31], [0, 2**32]], np.int64)
    assert metrics.summarize(matrix, ("a", "b"))["per_class"] == {"a": 0.75, "b": 2 / 3}
