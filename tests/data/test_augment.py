"""Augmentation: registration of image and label, geometry, colours, padding."""

import colorsys

import cv2
import numpy as np
import pytest

from hfgd_jax.data import augment
from hfgd_jax.data.augment import Settings

MEAN = (123.7, 116.3, 103.5)


def blocks(height, width, cell, seed=0):
    """A label of square cells and an image in which class k has grey level 20 * k."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 12, (height // cell + 1, width // cell + 1))
    label = np.repeat(np.repeat(cells, cell, 0), cell, 1)[:height, :width].astype(np.uint8)
    return np.repeat(label[..., None] * 20, 3, -1).astype(np.uint8), label


def settings(**fields):
    return Settings(**({"crop": (65, 81), "mean_pixel": MEAN, "photometric": "none"} | fields))


@pytest.mark.parametrize("input_scale", [1.0, 0.5, 0.37])
def test_image_and_label_stay_registered(input_scale):
    image, label = blocks(97, 131, 16)
    rng = np.random.default_rng(0)
    for _ in range(40):
        out, mask = augment.augment(image, label, rng, settings(input_scale=input_scale))
        assert out.shape == (65, 81, 3) and mask.shape == (65, 81)
        assert out.dtype == mask.dtype == np.uint8
        valid = mask != 255
        # where a pixel's neighbours have its class, interpolation cannot have changed its colour
        same = cv2.erode(mask, np.ones((3, 3))) == cv2.dilate(mask, np.ones((3, 3)))
        inner = np.zeros_like(valid)
        inner[1:-1, 1:-1] = (valid & same)[1:-1, 1:-1]  # beyond the crop there may be another class
        assert inner.sum() > 20
        np.testing.assert_array_equal(out[inner], np.repeat(mask[inner][:, None] * 20, 3, 1))
        assert (out[~valid] == (124, 116, 104)).all()


def test_padding_lies_at_the_bottom_and_right():
    image, label = blocks(20, 30, 5)
    out, mask = augment.augment(
        image, label, np.random.default_rng(0), settings(crop=(33, 49), scale_range=(1, 1), flip=0)
    )
    np.testing.assert_array_equal(out[:20, :30], image)
    np.testing.assert_array_equal(mask[:20, :30], label)
    assert (mask[20:] == 255).all() and (mask[:, 30:] == 255).all()
    assert (out[20:] == (124, 116, 104)).all() and (out[:, 30:] == (124, 116, 104)).all()


def test_flip_mirrors_both_or_none():
    image, label = blocks(65, 81, 16)
    for flip in (0.0, 1.0):
        out, mask = augment.augment(
            image, label, np.random.default_rng(3), settings(scale_range=(1, 1), flip=flip)
        )
        step = -1 if flip else 1
        np.testing.assert_array_equal(out, image[:, ::step])
        np.testing.assert_array_equal(mask, label[:, ::step])


def test_flip_happens_half_the_time():
    image = np.zeros((2, 2, 3), np.uint8)
    label = np.array([[0, 1], [0, 1]], np.uint8)
    rng = np.random.default_rng(0)
    plain = settings(crop=(2, 2), scale_range=(1, 1))
    flipped = sum(int(augment.augment(image, label, rng, plain)[1][0, 0]) for _ in range(400))
    assert 160 < flipped < 240


@pytest.mark.parametrize(
    ("scale_range", "step", "want"),
    [
        ((0.5, 2.0), 0.25, [0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]),
        ((0.5, 1.0), 0.2, [0.5, 0.7, 0.9]),
        ((1.0, 1.0), 0.25, [1.0]),
    ],
)
def test_scales_are_steps_with_both_ends(scale_range, step, want):
    rng = np.random.default_rng(0)
    seen = {round(augment.draw_scale(rng, scale_range, step), 6) for _ in range(300)}
    assert sorted(seen) == want


def test_scale_without_step_is_continuous():
    rng = np.random.default_rng(0)
    seen = [augment.draw_scale(rng, (0.5, 2.0), 0) for _ in range(100)]
    assert len(set(seen)) == 100 and 0.5 <= min(seen) < 0.6 and 1.9 < max(seen) <= 2.0


@pytest.mark.parametrize("scale", [0.3, 0.5, 0.625, 1.0, 1.75, 3.1])  # steps of 1 to 10 input pixels
def test_cropping_first_equals_cropping_last(scale):
    rng, size = np.random.default_rng(1), (97, 131)
    image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    label = rng.integers(0, 12, size).astype(np.uint8)
    s = augment.as_fraction(scale)
    whole_size = augment.scaled_size(size, s)
    whole = augment.resize_image(image, scale)
    mask = augment.resize_label_window(label, s, (0, 0), whole_size)
    assert whole.shape[:2] == mask.shape == whole_size
    assert all(abs(a - b * scale) <= 1 for a, b in zip(whole_size, size, strict=True))
    for _ in range(30):
        h, w = (int(rng.integers(1, n + 1)) for n in whole_size)
        y, x = (int(rng.integers(n - m + 1)) for n, m in zip(whole_size, (h, w), strict=True))
        part = augment.resize_window(image, s, (y, x), (h, w))
        assert part.shape == (h, w, 3)
        difference = np.abs(part.astype(int) - whole[y : y + h, x : x + w])
        assert difference.max() <= 1  # rounding
        np.testing.assert_array_equal(
            augment.resize_label_window(label, s, (y, x), (h, w)), mask[y : y + h, x : x + w]
        )


def test_resizing_is_in_areas_of_pixels():
    image = np.zeros((4, 4, 3), np.uint8)
    image[:2] = 200
    half = augment.resize_image(image, 0.5)
    np.testing.assert_array_equal(half[..., 0], [[200, 200], [0, 0]])
    label = np.arange(16, dtype=np.uint8).reshape(4, 4)
    double = augment.resize_label_window(label, augment.as_fraction(2.0), (0, 0), (8, 8))
    np.testing.assert_array_equal(double, np.repeat(np.repeat(label, 2, 0), 2, 1))
    ramp = np.repeat(np.arange(0, 160, 40, dtype=np.uint8)[None, :, None], 4, 0).repeat(3, -1)
    np.testing.assert_array_equal(augment.resize_image(ramp, 2.0)[0, :, 0], [0, 10, 30, 50, 70, 90, 110, 120])


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (300, 2)])
def test_images_thinner_than_a_pixel_after_scaling_keep_one(size):
    image, label = np.full((*size, 3), 7, np.uint8), np.full(size, 3, np.uint8)
    for scale in (1 / 64, 2.0):
        fields = settings(crop=(33, 33), input_scale=scale)
        out, mask = augment.augment(image, label, np.random.default_rng(0), fields)
        assert out.shape == (33, 33, 3)
        assert (out[mask == 3] == 7).all() and (mask == 3).any()


def test_scales_are_rounded_to_fractions_of_at_most_sixty_fourths():
    assert augment.as_fraction(0.75) == augment.as_fraction(0.7500001)
    assert augment.as_fraction(1e-9) > 0
    assert abs(float(augment.as_fraction(0.3712345)) - 0.3712345) < 1 / 64


# -- colours --


def changes(mode, count=400):
    image = np.full((2, 2, 3), (100, 120, 140), np.uint8)
    rng = np.random.default_rng(0)
    return np.array([augment.photometric(image, rng, mode, image)[0, 0].astype(int) for _ in range(count)])


def test_photometric_none_changes_nothing():
    assert (changes("none", 20) == (100, 120, 140)).all()


def test_photometric_plain_is_brightness_half_the_time():
    out = changes("plain") - (100, 120, 140)
    assert (out == out[:, :1]).all()
    assert out.min() <= -28 and out.max() >= 28 and np.abs(out).max() <= 32
    assert 0.4 < (out[:, 0] == 0).mean() < 0.6


def test_photometric_advanced_changes_brightness_saturation_and_hue():
    out = changes("advanced")
    unchanged = (np.abs(out - (100, 120, 140)).max(1) == 0).mean()
    # contrast does nothing to one colour: brightness, saturation and hue remain, or none of the three
    assert 0.05 < unchanged < 0.25
    assert len({tuple(v) for v in out}) > 150


def test_photometric_public_is_contrast_then_saturation_then_brightness(monkeypatch):
    """Factors 0.5 to 1.5, +-32 grey levels, each half the time; no hue; the mean is the whole image's."""
    calls = []
    parts = {"contrast": (0.5, 1.5), "saturation_and_hue": (0.5, 1.5), "brightness": (-32, 32)}
    for name in parts:

        def record(image, *arguments, name=name):
            calls[-1].append((name, *arguments))
            return image

        monkeypatch.setattr(augment, name, record)
    image, label, rng = np.zeros((3, 3, 3), np.uint8), np.zeros((3, 3), np.uint8), np.random.default_rng(0)
    for _ in range(400):
        calls.append([])
        augment.augment(image, label, rng, settings(crop=(2, 2), photometric="public"))
    names = [[call[0] for call in done] for done in calls]
    assert all(done == [name for name in parts if name in done] for done in names)
    assert 30 < names.count([]) < 70 and 30 < names.count(list(parts)) < 70
    for name, (low, high) in parts.items():
        seen = [call for done in calls for call in done if call[0] == name]
        drawn, edge = [call[1] for call in seen], (high - low) / 20
        assert 160 < len(seen) < 240, name
        assert low <= min(drawn) < low + edge and high - edge < max(drawn) <= high, name
        if name == "contrast":
            assert all(call[2] is image for call in seen)
        if name == "saturation_and_hue":
            assert all(call[2] == 0 for call in seen)


def test_brightness_saturates():
    image = np.array([[[0, 128, 255]]], np.uint8)
    np.testing.assert_array_equal(augment.brightness(image, 20)[0, 0], [20, 148, 255])
    np.testing.assert_array_equal(augment.brightness(image, -20)[0, 0], [0, 108, 235])


def test_contrast_is_about_each_channels_mean():
    image = np.zeros((1, 2, 3), np.uint8)
    image[0, 0], image[0, 1] = (100, 0, 40), (200, 0, 60)
    out = augment.contrast(image, 0.75, image)
    np.testing.assert_array_equal(out[0, 0], np.rint((112.5, 0, 42.5)))
    np.testing.assert_array_equal(out[0, 1], np.rint((187.5, 0, 57.5)))


@pytest.mark.parametrize(("factor", "turn"), [(1.25, 0.0), (1.0, -0.1), (0.8, 0.05)])
def test_saturation_and_hue_are_those_of_hsv(factor, turn):
    rng = np.random.default_rng(0)
    image = rng.integers(30, 226, (8, 8, 3)).astype(np.uint8)
    want = []
    for pixel in image.reshape(-1, 3):
        h, s, v = colorsys.rgb_to_hsv(*(pixel / 255))
        want.append(colorsys.hsv_to_rgb((h + turn) % 1, min(1, s * factor), v))
    got = augment.saturation_and_hue(image, factor, turn).reshape(-1, 3).astype(int)
    assert np.abs(got - np.array(want) * 255).max() < 8  # eight bits of hue and saturation
    assert np.abs(got - np.array(want) * 255).mean() < 1.2


def test_distortion_leaves_label_and_padding_alone():
    image, label = blocks(40, 40, 8)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        fixed = {"crop": (65, 65), "scale_range": (1, 1), "flip": 0}
        out, mask = augment.augment(image, label, rng, settings(photometric="advanced", **fixed))
        np.testing.assert_array_equal(mask[:40, :40], label)
        assert (out[40:] == (124, 116, 104)).all() and (out[:, 40:] == (124, 116, 104)).all()


def test_inputs_are_not_written_to():
    image, label = blocks(65, 81, 16)
    image.flags.writeable = label.flags.writeable = False
    for seed in range(10):
        augment.augment(
            image, label, np.random.default_rng(seed), settings(photometric="advanced", scale_range=(1, 1))
        )


def test_a_crop_may_be_anywhere_up_to_the_last_offset():
    rng = np.random.default_rng(0)
    label = np.arange(3, dtype=np.uint8)[None].repeat(2, 0)
    image = label[..., None].repeat(3, -1)
    fixed = settings(crop=(2, 2), scale_range=(1, 1), flip=0)
    assert {int(augment.augment(image, label, rng, fixed)[1][0, 0]) for _ in range(50)} == {0, 1}


def test_scales_are_counted_in_whole_steps():
    rng = np.random.default_rng(0)
    assert {round(augment.draw_scale(rng, (0.5, 0.7), 0.1), 6) for _ in range(300)} == {0.5, 0.6, 0.7}


def test_scaled_sizes_are_rounded():
    assert augment.scaled_size((5, 7), augment.as_fraction(0.75)) == (4, 5)  # 3.75, 5.25
    assert augment.scaled_size((5, 1), augment.as_fraction(0.5)) == (2, 1)  # 2.5, and at least 1


def test_a_shrunk_pixel_is_the_mean_of_its_area_and_the_middle_of_the_labels():
    image = np.zeros((4, 4, 3), np.uint8)
    image[0] = 200
    assert augment.resize_image(image, 0.25).tolist() == [[[50] * 3]]
    label = np.arange(9, dtype=np.uint8).reshape(3, 3)
    third = augment.resize_label_window(label, augment.as_fraction(1 / 3), (0, 0), (1, 1))
    assert third.tolist() == [[4]]


def test_advanced_contrast_is_about_the_crop_not_the_image():
    crop = np.full((2, 2, 3), (100, 120, 140), np.uint8)
    for seed in range(50):
        one, two = (
            augment.photometric(crop, np.random.default_rng(seed), "advanced", whole)
            for whole in (crop, np.zeros_like(crop))
        )
        np.testing.assert_array_equal(one, two)
