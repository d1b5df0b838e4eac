"""The label scores: cleanlab's number, and which regions are found and how they rank."""

import numpy as np
import pytest

from hfgd_jax.report.quality import regions, softmin_score


def test_softmin_by_hand():
    """Weights exp((1 - s) / 0.1) of 0.9 and 0.7 are as 1 to e^2."""
    given = np.array([0.9, 0.7], np.float32)
    assert softmin_score(given) == pytest.approx((0.9 + 0.7 * np.e**2) / (1 + np.e**2), abs=1e-6)
    assert softmin_score(given, temperature=1e-3) == pytest.approx(0.7, abs=1e-6)
    assert softmin_score(np.zeros(0, np.float32)) is None


def scene(height=100, width=120):
    """A label of class 0, predicted as such with certainty."""
    label = np.zeros((height, width), np.uint8)
    return label, label.copy(), np.full(label.shape, 0.99, np.float32), np.full(label.shape, 0.99, np.float32)


def disagree(parts, rows, columns, suggested, own=0.01):
    _, mask, confidence, given = parts
    mask[rows, columns], confidence[rows, columns], given[rows, columns] = suggested, 0.91, own
    return parts


def found(parts, doubt=0.01, most=9):
    return regions(*parts, doubt=doubt, most=most)


def test_regions_have_their_place_size_and_classes():
    parts = disagree(scene(), slice(10, 30), slice(40, 70), 2)
    parts = disagree(parts, slice(60, 70), slice(0, 10), 1)  # smaller, at the image's edge
    large, small = found(parts)
    assert (large.given, large.suggested, large.pixels) == (0, 2, 600)
    assert large.box == pytest.approx((40 / 120, 0.1, 70 / 120, 0.3))
    assert large.share == pytest.approx(0.05) and large.confidence == pytest.approx(0.91)
    # One pixel (0.5 % of the diagonal) from its edge: 18 x 28 are inside, each with 0.91 - 0.01.
    assert large.score == pytest.approx(18 * 28 * 0.9 / 12000, rel=1e-5)
    assert small.score == pytest.approx(8 * 9 * 0.9 / 12000, rel=1e-5)  # the image's edge is none of its own
    assert [region.pixels for region in found(parts, most=1)] == [600]


def test_regions_are_left_out_where_thin_plausible_or_ignored():
    parts = disagree(scene(), slice(10, 12), slice(0, 120), 1)  # along a contour
    parts = disagree(parts, slice(40, 60), slice(10, 30), 1, own=0.05)
    parts = disagree(parts, slice(70, 90), slice(10, 30), 1)
    parts[0][70:90, 10:30] = 255
    assert found(parts) == []
    assert [region.pixels for region in found(parts, doubt=0.5)] == [400]


def test_neighbouring_regions_of_other_classes_stay_apart():
    parts = disagree(scene(), slice(10, 30), slice(10, 30), 1)
    parts = disagree(parts, slice(10, 30), slice(30, 50), 2)
    parts = disagree(parts, slice(60, 70), slice(10, 20), 1)
    assert sorted((r.suggested, r.pixels) for r in found(parts)) == [(1, 100), (1, 400), (2, 400)]
