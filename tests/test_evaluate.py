"""Scores: sampling of logits at the label's pixels, and a confusion matrix of every image once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hfgd_jax import config as configuration
from hfgd_jax import geometry, system
from hfgd_jax.data.source import open_split
from hfgd_jax.evaluate import Evaluator, logits_at_label


@pytest.mark.parametrize(("name", "stride", "grid"), [("align_corners", 4, 33), ("half_pixel", 4, 32)])
def test_equal_sizes_give_the_pixels_of_the_grid(name, stride, grid):
    h, w = geometry.feature_size((grid, grid), stride, name)
    logits = jax.random.normal(jax.random.key(0), (2, h, w, 3))
    size = jnp.array([[30, 27], [grid, grid]])
    got = logits_at_label(logits, size, size, (grid, grid), output_stride=stride, geometry=name)
    want = geometry.to_pixels(logits, (grid, grid), geometry=name)
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("name", ["align_corners", "half_pixel"])
def test_other_sizes_against_plain_loops(name):
    stride, image_size, label_size = 4, (21, 30), (43, 59)
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1, 9, 9, 2))
    got = logits_at_label(
        jnp.asarray(logits),
        jnp.array([image_size]),
        jnp.array([label_size]),
        (48, 64),
        output_stride=stride,
        geometry=name,
    )

    def position(i, axis):
        pixel = (i + 0.5) * image_size[axis] / label_size[axis] - 0.5
        cell = pixel / stride if name == "align_corners" else (pixel + 0.5) / stride - 0.5
        return min(max(cell, 0), 8)

    for y in range(0, 43, 3):
        for x in range(0, 59, 5):
            py, px = position(y, 0), position(x, 1)
            y0, x0 = min(int(py), 7), min(int(px), 7)
            ty, tx = py - y0, px - x0
            top = logits[0, y0, x0] * (1 - tx) + logits[0, y0, x0 + 1] * tx
            low = logits[0, y0 + 1, x0] * (1 - tx) + logits[0, y0 + 1, x0 + 1] * tx
            np.testing.assert_allclose(got[0, y, x], top * (1 - ty) + low * ty, atol=1e-4)


@pytest.fixture(scope="module")
def trained(camvid_dir):
    """A tiny model with random weights on the miniature CamVid, whose images differ in size."""
    config = configuration.default()
    configuration.set_method(config, "sfpn")
    configuration.set_tiny(config)
    config.data.update({"dataset": "camvid", "data_dir": str(camvid_dir), "num_classes": 11})
    config.eval.batch_size = 2
    made = system.build(config)
    state, _ = system.initial_state(made)
    split = open_split(camvid_dir, "camvid", "val")
    return config, made, state, split


def test_the_matrix_counts_every_pixel_of_every_image_once(trained):
    config, made, state, split = trained
    matrix = Evaluator(made.model, config, made.mesh).confusion(state.model, split, made.mean_pixel)
    labels = [split.example(i)["label"] for i in range(len(split))]
    counts = sum(np.bincount(label[label != 255].ravel(), minlength=11) for label in labels)
    np.testing.assert_array_equal(matrix.sum(1), counts)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_the_matrix_is_that_of_the_predictions_one_by_one(trained, scale):
    config, made, state, split = trained
    config = config.copy_and_resolve_references()
    config.data.input_scale = scale
    evaluator = Evaluator(made.model, config, made.mesh)
    matrix = evaluator.confusion(state.model, split, made.mean_pixel)
    want = np.zeros((11, 11), np.int64)
    for i in range(len(split)):
        example = split.example(i)
        mask = evaluator.predict_picture(state.model, example["image"], made.mean_pixel)
        assert mask.shape == example["label"].shape
        for truth, predicted in zip(example["label"].ravel(), mask.ravel(), strict=True):
            if truth != 255:
                want[truth, predicted] += 1
    # Sums over differently padded canvases may differ in the last bit, and so a pixel at a tie.
    assert np.abs(matrix - want).sum() <= 0.002 * want.sum()


def test_an_evaluation_stops_when_asked(trained):
    config, made, state, split = trained
    calls = iter([False, True])
    matrix = Evaluator(made.model, config, made.mesh).confusion(
        state.model, split, made.mean_pixel, should_stop=lambda: next(calls)
    )
    assert matrix is None
