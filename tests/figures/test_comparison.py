"""Which images and which parts of them are shown: by hand-made masks."""

import numpy as np
import pytest

from hfgd_jax.figures import comparison
from hfgd_jax.figures.comparison import BOTH_RIGHT, NEITHER, ONLY_FIRST, ONLY_LAST, Box

LABEL = np.uint8([[0, 1, 2, 255], [0, 1, 2, 0]])
FIRST = np.uint8([[0, 1, 0, 3], [1, 1, 0, 0]])
LAST = np.uint8([[0, 0, 2, 0], [1, 1, 1, 0]])


def test_disagreement_is_where_labelled_pixels_differ_between_any_runs():
    found = comparison.disagreement(np.stack([FIRST, FIRST, LAST]), LABEL)
    assert found.tolist() == [[False, True, True, False], [False, False, True, False]]
    assert not comparison.disagreement(FIRST[None], LABEL).any()


def test_outcomes_say_which_of_two_runs_is_right():
    found = comparison.outcomes(FIRST, LAST, LABEL)
    assert found.dtype == np.uint8
    assert found.tolist() == [
        [BOTH_RIGHT, ONLY_FIRST, ONLY_LAST, 255],
        [NEITHER, BOTH_RIGHT, NEITHER, BOTH_RIGHT],
    ]


def test_iou_of_an_image_is_over_the_classes_in_mask_or_label():
    # Class 0: 2 of 5; 1: 2 of 3; 2: none of 2; 3 is but at the ignored pixel.
    assert comparison.image_iou(FIRST, LABEL, 5) == pytest.approx((2 / 5 + 2 / 3 + 0) / 3)
    assert comparison.image_iou(FIRST, np.full_like(LABEL, 255), 5) is None


def test_the_largest_come_first_and_none_never():
    assert comparison.largest([0.1, None, 0.4, 0.4, 0.0], 3) == [2, 3, 0]
    assert comparison.largest([None, 0.0], 5) == [1]


def test_zoom_boxes_hold_the_largest_differences_in_their_middle():
    difference = np.zeros((60, 80), bool)
    difference[20:26, 50:58] = True  # 48 pixels
    difference[40:44, 10:15] = True  # 20
    difference[2, 2] = True
    boxes = comparison.zoom_boxes(difference, 2, 0.25)
    assert [difference[box.part].sum() for box in boxes] == [48, 20]
    assert all((box.height, box.width) == (15, 20) for box in boxes)
    for box, (row, column) in zip(boxes, [(22.5, 53.5), (41.5, 12)], strict=True):
        assert abs(box.top + 7 - row) <= 1.5 and abs(box.left + 9.5 - column) <= 1.5
    # The third holds the lone pixel in the corner; no fourth is made up.
    third = comparison.zoom_boxes(difference, 4, 0.25)[2:]
    assert [difference[box.part].sum() for box in third] == [1]
    assert comparison.zoom_boxes(np.zeros((9, 9), bool), 2, 0.3) == []


def test_zoom_boxes_do_not_overlap_and_may_be_the_whole():
    difference = np.random.default_rng(0).random((50, 70)) < 0.3
    boxes = comparison.zoom_boxes(difference, 4, 0.4)
    covered = np.zeros(difference.shape, int)
    for box in boxes:
        assert box.top + box.height <= 50 and box.left + box.width <= 70
        covered[box.part] += 1
    assert len(boxes) > 1 and covered.max() == 1
    assert comparison.zoom_boxes(difference, 2, 1.0) == [Box(0, 0, 50, 70)]
