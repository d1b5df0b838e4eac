"""Curves of runs over their seeds."""

import numpy as np

from hfgd_jax.figures import curves


def test_series_and_their_mean_over_seeds():
    lines = [
        {"step": 20, "loss": 3.0},
        {"step": 40, "loss": 2.0},
        {"step": 40, "mIoU": 0.5},
        {"step": 60, "loss": 9.0},
        {"step": 60, "loss": 1.0, "mIoU": None},
    ]
    loss = curves.series(lines, "loss")
    assert loss == {20: 3.0, 40: 2.0, 60: 1.0} and curves.series(lines, "mIoU") == {40: 0.5}
    found = curves.over_seeds([loss, {20: 5.0, 60: 1.0, 80: 0.0}])
    assert found.steps.tolist() == [20, 60] and found.mean.tolist() == [4.0, 1.0]
    np.testing.assert_allclose(found.deviation, [np.sqrt(2), 0])
    assert curves.over_seeds([loss]).deviation.tolist() == [0, 0, 0]
    assert curves.over_seeds([loss, {}]).steps.size == 0
