"""What is compiled for a server is bounded, and masks are the same before and after it is forgotten."""

import jax
import numpy as np
from small_model import MEAN, made, picture

from hfgd_jax.inference.tiles import TiledPredictor
from hfgd_jax.serve import model
from hfgd_jax.serve.limits import SIDES


def test_compiled_shapes_are_forgotten_beyond_the_bound_and_masks_stay(monkeypatch):
    inference, _, variables = made("align_corners")
    images = [picture(60, 70), picture(60, 200), picture(300, 70), picture(61, 71)]
    want = [TiledPredictor(inference, variables, MEAN)(image).mask for image in images]
    cleared, clear = [], jax.clear_caches

    def forget():
        cleared.append(1)
        clear()

    monkeypatch.setattr(jax, "clear_caches", forget)
    predictor = model.BoundedPredictor(TiledPredictor(inference, variables, MEAN, sides=SIDES), shapes=2)
    predictor.plan([(60, 70)])
    predictor.warm_up((60, 70))
    inference.shapes.clear()
    for image, mask, times in zip(images, want, (0, 0, 1, 1), strict=True):
        np.testing.assert_array_equal(predictor(image)[0], mask)
        assert len(cleared) == times
    assert inference.shapes == {(1, 65, 97), (1, 129, 257), (1, 385, 129), (1, 129, 129)}
