"""Scales, mirror images and windows against plain loops in NumPy, one picture at a time."""

import json
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import MEAN, Small, logits_of, made, picture

from hfgd_jax import config as configuration
from hfgd_jax import geometry
from hfgd_jax.data import augment, canvases, pipeline
from hfgd_jax.errors import UserError
from hfgd_jax.inference import sliding
from hfgd_jax.inference import views as inference_views
from hfgd_jax.inference.views import Inference, logits_at_label, mirror

REACH = 8  # pixels: half the receptive field of `Small`, and a little


def batch_of(pictures, inference):
    """The views, label sizes and label canvas of pictures in one batch, through the pipeline's own parts."""
    scales = [augment.as_fraction(scale) for scale in inference.scales]
    ((canvas, rows),) = canvases.plan(
        [p.shape[:2] for p in pictures], len(pictures), scales, inference.geometry
    )
    assert sorted(rows) == rows == list(range(len(pictures)))
    each = [pipeline.views(p, inference.scales, canvas, MEAN) for p in pictures]
    views = [{k: np.stack([view[k] for view in same]) for k in same[0]} for same in zip(*each, strict=True)]
    return views, np.array([p.shape[:2] for p in pictures], np.int32), canvas


def sampled(maps, image_size, label_size, name):
    """Logits `[h, w, k]` at every pixel of the label, bilinear: the positions written out, in float64."""
    maps = np.asarray(maps, np.float64)
    for axis in (0, 1):
        position = (np.arange(label_size[axis]) + 0.5) * image_size[axis] / label_size[axis] - 0.5
        cell = position / 4 if name == "align_corners" else (position + 0.5) / 4 - 0.5
        own = geometry.feature_size(geometry.grid_size(image_size, name), 4, name)[axis]
        cell = np.clip(cell, 0, own - 1)
        low = np.minimum(cell.astype(int), maps.shape[axis] - 2)
        t = (cell - low).reshape([-1 if a == axis else 1 for a in range(3)])
        maps = np.take(maps, low, axis) * (1 - t) + np.take(maps, low + 1, axis) * t
    return maps


def plain(model, variables, image, name, scales, flip, canvases):
    """The reference: one picture, one view after the other."""
    total, views = 0.0, 0
    for scale, canvas in zip(scales, canvases, strict=True):
        small = augment.resize_image(image, scale)
        for turned in (False, True) if flip else (False,):
            seen = augment.pad_image(small[:, ::-1] if turned else small, canvas, MEAN)
            maps = logits_of(model, variables, seen[None])[0]
            pixels = sampled(maps, small.shape[:2], image.shape[:2], name)
            total, views = total + (pixels[:, ::-1] if turned else pixels), views + 1
    return total / views


@pytest.mark.parametrize("name", ["align_corners", "half_pixel"])
@pytest.mark.parametrize("size", [(45, 61), (64, 96)], ids=["odd", "even"])
def test_scales_and_mirror_images_equal_a_plain_loop(name, size):
    inference, model, variables = made(name, scales=(0.5, 1, 1.75), flip=True)
    pictures = [picture(*size, seed) for seed in (0, 1)]
    views, sizes, canvas = batch_of(pictures, inference)
    for image_canvas, scale in zip(canvas.images, inference.scales, strict=True):
        scaled = augment.scaled_size(size, Fraction(scale))
        assert image_canvas == geometry.grid_size(scaled, name)  # one size: padded as one picture would be
    got = np.asarray(inference.logits(variables, views, sizes, canvas.label))
    assert got.dtype == np.float32 and got.shape == (2, *canvas.label, 5)
    for row, image in enumerate(pictures):
        want = plain(model, variables, image, name, inference.scales, True, canvas.images)
        assert np.ptp(want) > 0.1
        np.testing.assert_allclose(got[row, : size[0], : size[1]], want, atol=1e-4)
    assert inference.shapes == {(2, *c) for c in canvas.images}


def test_other_sizes_in_one_batch_and_an_input_scale():
    config = configuration.default()
    config.data.input_scale = 0.75
    config.eval.update({"scales": (1.0, 1.25), "flip": True})
    model = Small("align_corners")
    variables = model.init(jax.random.key(1), jnp.zeros((1, 65, 65, 3)), False)
    inference = Inference(model, config)
    assert inference.scales == (0.75, 0.9375)
    pictures = [picture(100, 127), picture(77, 90, 1)]
    views, sizes, canvas = batch_of(pictures, inference)
    got = np.asarray(inference.logits(variables, views, sizes, canvas.label))
    for row, image in enumerate(pictures):
        h, w = image.shape[:2]
        want = plain(model, variables, image, "align_corners", inference.scales, True, canvas.images)
        np.testing.assert_allclose(got[row, :h, :w], want, atol=1e-4)


def test_blocks_of_rows_change_nothing(monkeypatch):
    """Three rows at a time, of which the last block has one too many; planes go along."""
    variables = made("align_corners")[2]
    pictures = [picture(43, 61), picture(40, 33, 1)]
    label = np.arange(2 * 65 * 65).reshape(2, 65, 65)

    def found():
        inference, _, _ = made("align_corners", scales=(0.5, 1), flip=True)
        views, sizes, canvas = batch_of(pictures, inference)
        given = variables, views, sizes, canvas.label
        rows = inference.each(lambda logits, label: (logits, label), *given, label)
        return *rows, inference.masks(*given), inference.probabilities(*given)

    whole = found()
    monkeypatch.setattr(inference_views, "BLOCK", 3 * 2 * 65 * 5)
    for cut, one in zip(found(), whole, strict=True):
        np.testing.assert_allclose(cut, one, atol=1e-5)
    np.testing.assert_array_equal(whole[1], label)


def test_a_mirror_image_stays_at_the_left():
    images = np.random.default_rng(0).integers(0, 255, (2, 5, 9, 3)).astype(np.uint8)
    got = np.asarray(mirror(jnp.asarray(images), jnp.array([[5, 9], [3, 4]])))
    np.testing.assert_array_equal(got[0], images[0, :, ::-1])
    np.testing.assert_array_equal(got[1, :, :4], images[1, :, 3::-1])
    np.testing.assert_array_equal(got[1, :, 4:], images[1, :, 4:])


def test_logits_past_the_images_own_grid_are_never_read():
    for name in ("align_corners", "half_pixel"):
        grid = geometry.grid_size((90, 40), name)
        h, w = geometry.feature_size(grid, 4, name)
        maps = jax.random.normal(jax.random.key(0), (1, h, w, 2))
        size = jnp.array([[60, 31]])
        own = geometry.feature_size(geometry.grid_size((60, 31), name), 4, name)
        tight = maps[:, : own[0], : own[1]]
        wide, narrow = (
            logits_at_label(m, size, size, (60, 31), output_stride=4, geometry=name) for m in (maps, tight)
        )
        np.testing.assert_allclose(wide, narrow, atol=1e-6)


# -- windows --


def starts_of(side, window, stride):
    """Where windows start along an axis, by hand."""
    last = -(-max(side - window, 0) // 32) * 32
    return sorted({*range(0, last, stride), last})


def by_windows(model, variables, image, name, window, stride, canvas):
    """The reference: the average of windows cut out one by one, sampled at the picture's pixels."""
    h, w = geometry.feature_size(canvas, 4, name)
    total, times = np.zeros((h, w, 5)), np.zeros((h, w, 1))
    seen = augment.pad_image(image, canvas, MEAN)
    for top in starts_of(image.shape[0], window[0], stride[0]):
        for left in starts_of(image.shape[1], window[1], stride[1]):
            part = seen[top : top + window[0], left : left + window[1]]
            logits = np.asarray(logits_of(model, variables, part[None])[0])
            place = np.s_[top // 4 : top // 4 + logits.shape[0], left // 4 : left // 4 + logits.shape[1]]
            total[place] += logits
            times[place] += 1
    return sampled(total / np.maximum(times, 1), image.shape[:2], image.shape[:2], name)


@pytest.mark.parametrize("name", ["align_corners", "half_pixel"])
def test_windows_equal_a_plain_loop(name):
    """Pictures of two sizes in one batch, the smaller one with fewer windows, and lower than a window."""
    inference, model, variables = made(name, window=(64, 90))
    window = geometry.grid_size((64, 90), name)
    stride = (32, 64)  # two thirds of the window, on multiples of 32
    pictures = [picture(130, 193), picture(50, 150, 1)]
    canvas = canvases.Canvas((geometry.grid_size((130, 193), name),), (130, 193))
    each = [pipeline.views(p, (1.0,), canvas, MEAN) for p in pictures]
    views = [{k: np.stack([view[0][k] for view in each]) for k in each[0][0]}]
    sizes = np.array([p.shape[:2] for p in pictures], np.int32)
    got = np.asarray(inference.logits(variables, views, sizes, canvas.label))
    assert inference.shapes == {(2, *window)}
    for row, image in enumerate(pictures):
        h, w = image.shape[:2]
        want = by_windows(model, variables, image, name, window, stride, canvas.images[0])
        np.testing.assert_allclose(got[row, :h, :w], want, atol=1e-4)


@pytest.mark.parametrize("name", ["align_corners", "half_pixel"])
def test_windows_give_the_wholes_logits_away_from_their_borders(name):
    image, window = picture(161, 193), (97, 97)
    whole, _, variables = made(name)
    cut, _, _ = made(name, window=window)
    views, sizes, canvas = batch_of([image], whole)
    want = np.asarray(whole.logits(variables, views, sizes, canvas.label))[0, :161, :193]
    got = np.asarray(cut.logits(variables, views, sizes, canvas.label))[0, :161, :193]
    window = geometry.grid_size(window, name)
    near = np.zeros((161, 193), bool)
    for axis, side in enumerate((161, 193)):
        for start in starts_of(side, window[axis], 64):
            for border in (start, start + window[axis]):
                if 0 < border < side:
                    near[(slice(None),) * axis + (slice(max(border - REACH, 0), border + REACH),)] = True
    assert 0.2 < near.mean() < 0.8
    np.testing.assert_allclose(got[~near], want[~near], atol=1e-5)
    assert np.abs(got - want).max() > 1e-3  # the borders do differ: windows were cut


def test_windows_with_scales_and_mirror_images():
    """A window larger than every canvas changes nothing; one between cuts the larger scale alone."""
    image, settings = picture(60, 90), {"scales": (0.5, 1.5), "flip": True}
    whole, _, variables = made("align_corners", **settings)
    views, sizes, canvas = batch_of([image], whole)
    want = np.asarray(whole.logits(variables, views, sizes, canvas.label))
    large, _, _ = made("align_corners", window=(513, 513), **settings)
    np.testing.assert_array_equal(large.logits(variables, views, sizes, canvas.label), want)
    between, _, _ = made("align_corners", window=(97, 97), **settings)
    got = np.asarray(between.logits(variables, views, sizes, canvas.label))
    assert between.shapes == {(1, 33, 65), (1, 97, 97)}
    assert 0 < np.abs(got - want)[0, :60, :90].mean() < 0.05 * np.ptp(want)


def test_every_picture_has_its_own_windows():
    size, window, stride = jnp.array([[97, 300], [65, 97]]), (65, 97), (32, 64)
    found = {(0, 0): [], (0, 1): [], (1, 0): []}
    assert sliding.window_count(97, 65, 32) == 2 and sliding.window_count(321, 97, 64) == 5
    for column in range(5):
        start, there = sliding.window_starts(size, jnp.array([0, column]), window, stride)
        found[0, 0] += [int(start[0, 1])] if there[0] else []
        found[1, 0] += [int(start[1, 1])] if there[1] else []
    assert found[0, 0] == starts_of(300, 97, 64) == [0, 64, 128, 192, 224]
    assert found[1, 0] == [0]


# -- sampling --


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


# -- settings --


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("scales", (), r"config.eval.scales=\(\): want numbers"),
        ("scales", ("abc",), r"config.eval.scales=\('abc',\): want numbers"),
        ("scales", (0, 1), r"config.eval.scales=\(0, 1\): want numbers from 0.1 to 8"),
        ("window", (65,), r"config.eval.window=\(65,\): want two numbers"),
        ("window", (0, 65), r"config.eval.window=\(0, 65\): want a height and a width"),
        ("window_overlap", 1.0, "config.eval.window_overlap=1.0: want a value from 0.0 to 0.9"),
    ],
)
def test_wrong_settings_are_refused(field, value, says):
    config = configuration.default()
    config.eval[field] = value
    with pytest.raises(UserError, match=says):
        configuration.validate(config)


def test_settings_survive_a_runs_saved_config():
    """Whole numbers among the scales, and a config of before there were any scales."""
    config = configuration.default()
    config.eval.update({"scales": (0.5, 1, 1.75), "window": (65, 97), "flip": True})
    configuration.validate(config)
    again = configuration.from_json(configuration.to_json(config))
    assert again.eval.scales == (0.5, 1, 1.75) and again.eval.window == (65, 97) and again.eval.flip
    old = json.loads(configuration.to_json(config))
    for key in ("scales", "window", "window_overlap", "flip", "details"):
        del old["eval"][key]
    assert configuration.from_json(json.dumps(old)).eval.scales == (1.0,)
