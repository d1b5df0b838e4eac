"""Large pictures in tiles: the mask of the whole, with memory that the tile bounds."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from small_model import MEAN, made, picture

from hfgd_jax.inference.tiles import TiledPredictor, spans


@pytest.mark.parametrize(
    ("length", "tile", "step", "overlap"),
    [
        (3000, 1024, 128, 1 / 3),
        (100, 1024, 128, 0.5),
        (4096, 512, 32, 0.0),
        (999, 64, 32, 0.0),
        (1025, 1024, 32, 0.9),
    ],
)
def test_tiles_give_each_pixel_once(length, tile, step, overlap):
    found = spans(length, tile, step, overlap)
    kept = [i for span in found for i in range(span.first, span.last)]
    assert kept == list(range(length))
    for span in found:
        assert span.start % step == 0 and span.start <= span.first < span.last <= span.stop <= length
        assert span.stop - span.start <= tile and (length - span.stop) % step == 0
    for one, other in itertools.pairwise(found):
        assert one.stop - other.start >= int((one.stop - one.start) * overlap)
        assert 0 < one.stop - one.start == other.stop - other.start > tile - step
        assert abs((one.stop - one.last) - (other.first - other.start)) <= 1  # the overlap's middle


@pytest.mark.parametrize("name", ["align_corners", "half_pixel"])
def test_tiles_equal_the_whole(name):
    """The margin is wider than the receptive field, so that the masks are the same everywhere."""
    image = picture(300, 410)
    whole, _, variables = made(name, scales=(0.5, 1.0), flip=True)
    want = TiledPredictor(whole, variables, MEAN)(image)
    assert want.tiles == 1 and len(np.unique(want.mask)) > 2
    tiled, _, _ = made(name, scales=(0.5, 1.0), flip=True, window=(192, 230))
    predictor = TiledPredictor(tiled, variables, MEAN, max_side=256)
    assert predictor.tile == (192, 192)  # multiples of 64, which is 32 pixels at scale 0.5
    got = predictor(image)
    assert got.tiles == 15 and len(tiled.shapes) == 2
    assert got.mask.shape == (300, 410) and got.mask.dtype == np.uint8
    assert (got.mask != want.mask).mean() < 1e-4  # ties


def test_given_sides_make_few_shapes_of_many_sizes_and_leave_the_masks_as_they_are():
    """A canvas is a function of its image's size; the model's border is the mean pixel, as the padding is."""
    inference, _, variables = made("align_corners")
    predictor = TiledPredictor(inference, variables, MEAN, sides=(64, 128))
    for height, width in ((40, 100), (64, 65), (33, 128), (10, 70)):
        image = picture(height, width)
        want = TiledPredictor(inference, variables, MEAN)(image)
        inference.shapes.clear()
        np.testing.assert_array_equal(predictor(image).mask, want.mask)
        assert inference.shapes == {(1, 65, 129)}
    predictor.plan([(40, 100)])
    assert predictor.canvas((40, 100)).label == (65, 129) and predictor.canvas((64, 60)).label == (65, 65)
    predictor.plan([(70, 70)])
    assert predictor.canvas((70, 70)).label == (97, 97)


def test_tiles_of_a_long_strip_are_as_narrow_as_it_is():
    inference, _, variables = made("align_corners")
    predictor = TiledPredictor(inference, variables, MEAN)
    assert predictor.tile == (1024, 1024)
    assert predictor(picture(10, 2100)).tiles == 3
    assert inference.shapes == {(1, 33, 1025)}  # the tiles see 1012 pixels, whole steps of 32 less than 2100
    assert predictor(picture(10, 2048)).tiles == 1


def test_planned_pictures_share_few_shapes():
    inference, _, variables = made("align_corners")
    predictor = TiledPredictor(inference, variables, MEAN)
    sizes = [(40 + 9 * i, 200 - 9 * i) for i in range(12)]
    predictor.plan(sizes)
    for size in sizes:
        assert predictor(picture(*size)).mask.shape == size
    assert 1 < len(inference.shapes) <= 8


PROGRAM = """
import json, resource, sys
import numpy as np
from hfgd_jax import config as configuration
from hfgd_jax.runs import system
from hfgd_jax.inference.views import Inference
from hfgd_jax.inference.tiles import TiledPredictor
config = configuration.default()
configuration.set_method(config, "hfgd")
configuration.set_tiny(config)
config.model.channels = 96
made = system.build(config)
state, _ = system.initial_state(made)
picture = np.random.default_rng(0).integers(0, 255, (3000, 4000, 3), dtype=np.uint8)
mask, tiles = TiledPredictor(Inference(made.model, config), state.model, made.mean_pixel)(picture)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"shape": mask.shape, "tiles": tiles, "GiB": peak}))
"""


@pytest.mark.slow
def test_a_photograph_of_twelve_million_pixels_stays_below_three_gib(user_env):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=1800,
        env={name: value for name, value in user_env.items() if name != "XLA_FLAGS"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["shape"] == [3000, 4000] and told["tiles"] == 24
    assert told["GiB"] < 3
