"""Boundary IoU against the published definition, class by class; small objects against plain components."""

import cv2
import numpy as np
import pytest
from scipy import ndimage

from hfgd_jax.evaluation import boundaries

CLASSES = 6


def blobs(shape, seed, sigma=3.0):
    """A random label map with regions of all sizes."""
    noise = np.random.default_rng(seed).normal(size=(CLASSES, *shape))
    return ndimage.gaussian_filter(noise, (0, sigma, sigma)).argmax(0).astype(np.uint8)


def contour_band(mask, width):
    """The part of a mask within `width` of its contour, as the authors' code has it."""
    padded = np.pad(mask.astype(np.uint8), 1)
    for _ in range(width):
        padded = cv2.erode(padded, np.ones((3, 3), np.uint8))
    return mask & (padded[1:-1, 1:-1] == 0)


@pytest.mark.parametrize("shape", [(60, 91), (128, 37)])
def test_boundary_counts_equal_the_authors_definition(shape):
    label, prediction = blobs(shape, 0), blobs(shape, 1)
    prediction[: shape[0] // 2] = label[: shape[0] // 2]
    width = max(1, round(0.02 * np.hypot(*shape)))
    got = boundaries.boundary_counts(label, prediction, CLASSES)
    for k in range(CLASSES):
        truth, seen = (contour_band(labels == k, width) for labels in (label, prediction))
        assert got[:, k].tolist() == [(truth & seen).sum(), (truth | seen).sum()]
    assert (got[0] > 0).any() and (got[0] < got[1]).any()


def test_ignored_pixels_are_in_no_boundary():
    label = blobs((50, 70), 0)
    prediction = label.copy()
    label[10:30, 20:50] = 255
    prediction[10:30, 20:50] = blobs((20, 30), 5)
    counts = boundaries.boundary_counts(label, prediction, CLASSES)
    np.testing.assert_array_equal(counts[0], counts[1])  # right wherever there is a label
    band = boundaries.boundary(label, max(1, round(0.02 * np.hypot(50, 70))))
    assert counts[0].sum() == (band & (label != 255)).sum()


def test_small_objects_equal_plain_components():
    shape = (200, 300)
    label, prediction = blobs(shape, 2, 1.5), blobs(shape, 2, 1.7)
    label[:20] = 255
    got = boundaries.small_object_counts(label, prediction, CLASSES)
    for k in range(CLASSES):
        components, number = ndimage.label(label == k, structure=np.ones((3, 3)))
        areas = [(components == i).sum() for i in range(1, number + 1)]
        right = [((components == i) & (prediction == k)).sum() for i in range(1, number + 1)]
        small = [i for i in range(number) if areas[i] < 0.001 * label.size]
        assert got[:, k].tolist() == [sum(right[i] >= areas[i] / 2 for i in small), len(small)]
    assert 0 < got[0].sum() < got[1].sum()


def test_counts_are_summed_over_images_and_absent_classes_are_none():
    seen = boundaries.Details(3)
    label = np.zeros((100, 100), np.uint8)
    label[40:43, 40:43] = 1  # nine pixels of 10 000: small
    found, missed = label.copy(), np.zeros_like(label)
    found[40, 40:43] = 0  # six of nine are right
    seen.add(label, found)
    seen.add(label, missed)
    columns = seen.columns()
    assert columns["small_object_recall"] == [None, 0.5, None]  # the background is not small
    both, either = (boundaries.boundary_counts(label, p, 3) for p in (found, missed))
    assert columns["boundary_IoU"][1] == pytest.approx(
        (both[0, 1] + either[0, 1]) / (both[1, 1] + either[1, 1])
    )
    assert columns["boundary_IoU"][2] is None
    summary = seen.summary(("a", "b", "c"))
    assert summary["small_object_recall"] == 0.5
    assert summary["per_class_small_object_recall"] == {"a": None, "b": 0.5, "c": None}
    assert list(summary) == [
        "boundary_IoU",
        "small_object_recall",
        "per_class_boundary_IoU",
        "per_class_small_object_recall",
    ]
