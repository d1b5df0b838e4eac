"""hfgd_jax.inference.render: what is in the files and pictures."""

import numpy as np
import pytest
from PIL import Image

from hfgd_jax.inference import render

PALETTE = [(128, 64, 128), (0, 0, 142), (250, 170, 30)]
CLASSES = ["road", "car", "lamp"]


@pytest.fixture
def scene():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    mask = rng.integers(0, 3, (40, 60))
    mask[:10] = 255
    return image, mask


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_mask_file_holds_ids_and_colours(tmp_path, scene, dtype):
    mask = scene[1].astype(dtype)
    render.write_mask(tmp_path / "m.png", mask, PALETTE)
    with Image.open(tmp_path / "m.png") as file:
        assert (file.format, file.mode) == ("PNG", "P")
        np.testing.assert_array_equal(np.asarray(file), mask)
        shown = np.asarray(file.convert("RGB"))
    np.testing.assert_array_equal(shown[mask == 1], np.broadcast_to(PALETTE[1], (int((mask == 1).sum()), 3)))
    assert (shown[mask == 255] == render.IGNORE_COLOR).all()
    assert [p.name for p in tmp_path.iterdir()] == ["m.png"]


def test_mask_of_255_classes(tmp_path):
    palette = [(k, 255 - k, 7) for k in range(255)]
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    render.write_mask(tmp_path / "m.png", mask, palette)
    with Image.open(tmp_path / "m.png") as file:
        np.testing.assert_array_equal(np.asarray(file), mask)
        assert tuple(np.asarray(file.convert("RGB"))[15, 14]) == (254, 1, 7)


@pytest.mark.parametrize("wrong", [3, 254, -1, 256])
def test_ids_without_a_colour_are_refused(tmp_path, scene, wrong):
    image, mask = scene
    mask[20, 20] = wrong
    with pytest.raises(ValueError, match=f"id {wrong} "):
        render.write_mask(tmp_path / "m.png", mask, PALETTE)
    with pytest.raises(ValueError, match=f"id {wrong} "):
        render.overlay(image, mask, PALETTE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_overlay_blends(scene, alpha):
    image, mask = scene
    before = image.copy()
    got = render.overlay(image, mask, PALETTE, alpha)
    colors = np.array([*PALETTE, *[(0, 0, 0)] * 253], float)[mask]
    want = np.where((mask == 255)[..., None], image, (1 - alpha) * image + alpha * colors)
    assert got.dtype == np.uint8
    np.testing.assert_allclose(got, want, atol=0.51)
    np.testing.assert_array_equal(got[mask == 255], image[mask == 255])
    np.testing.assert_array_equal(image, before)


def test_a_black_class_is_not_painted(scene):
    image, mask = scene
    palette = [(0, 0, 0), *PALETTE[1:]]
    got = render.overlay(image, mask, palette)
    np.testing.assert_array_equal(got[mask == 0], image[mask == 0])
    assert (got[mask == 1] != image[mask == 1]).any()
    strip = render.legend(["background"], [(0, 0, 0)], 300)
    assert (strip == 0).all(-1).sum() < 100  # an empty square


def test_overlay_of_bright_colours_does_not_wrap():
    white = np.full((2, 2, 3), 255, np.uint8)
    got = render.overlay(white, np.zeros((2, 2), int), [(255, 255, 255)], 0.5)
    assert (got == 255).all()


@pytest.mark.usefixtures("unchecked")
def test_overlay_needs_one_size(scene):
    image, mask = scene
    with pytest.raises(ValueError, match="differ in size"):
        render.overlay(image[:, 1:], mask, PALETTE)


def test_legend_shows_every_colour_within_its_width():
    palette = [(10 * k, 255 - 10 * k, 3) for k in range(20)]
    names = [f"class number {k}" for k in range(20)]
    strip = render.legend(names, palette, 300)
    assert strip.shape[1] == 300
    for color in palette:
        assert (strip == color).all(-1).sum() >= 100
    assert strip.shape[0] > render.legend(names, palette, 900).shape[0]  # more lines where it is narrow
    assert (strip.sum(-1) < 150).sum() > 500  # ink: the names are written
    assert render.legend([], [], 300).shape[1] == 300


def test_side_by_side_shows_three_panels_and_the_classes_in_sight(scene):
    image = scene[0]
    prediction = np.zeros((40, 60), np.uint8)
    label = np.full((40, 60), 255, np.uint8)
    label[:, 30:] = 2
    sheet = render.side_by_side(image, prediction, label, PALETTE, CLASSES, alpha=1.0)
    shown = [(sheet == color).all(-1).sum() for color in PALETTE]
    enlarged = 6 * 6  # 60 pixels become 360
    assert shown[0] >= 40 * 60 * enlarged
    assert 40 * 30 * enlarged <= shown[2] < shown[0]
    assert shown[1] == 0  # "car" is in neither mask: not in the legend either
    alone = render.side_by_side(image, prediction, None, PALETTE, CLASSES)
    assert alone.shape[1] < sheet.shape[1]
    again = render.side_by_side(image, prediction, label, PALETTE, CLASSES, alpha=1.0)
    np.testing.assert_array_equal(sheet, again)


def test_side_by_side_takes_any_size(scene):
    small = render.side_by_side(scene[0], np.zeros((1, 1), int), None, PALETTE, CLASSES)
    assert small.shape[1] >= 640
    big = np.zeros((1000, 3000, 3), np.uint8)
    mask = np.zeros((1000, 3000), np.uint8)
    sheet = render.side_by_side(big, mask, mask, PALETTE, CLASSES)
    assert sheet.shape[1] < 3000
    half = render.side_by_side(big[::2, ::2], mask, mask, PALETTE, CLASSES)
    assert half.shape == sheet.shape


def test_images_are_written_in_the_format_of_their_name(tmp_path, scene):
    image = scene[0]
    render.write_image(tmp_path / "a.png", image)
    render.write_image(str(tmp_path / "a.JPG"), np.zeros_like(image))
    with Image.open(tmp_path / "a.png") as file:
        np.testing.assert_array_equal(np.asarray(file), image)
    with Image.open(tmp_path / "a.JPG") as file:
        assert file.format == "JPEG"


def test_an_interrupted_write_leaves_the_old_file(tmp_path, scene, monkeypatch):
    image = scene[0]
    path = tmp_path / "a.png"
    render.write_image(path, image)
    before = path.read_bytes()

    def interrupted(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(path), "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        render.write_image(path, 255 - image)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_confusion_matrix_shows_the_shares_of_each_row():
    matrix = np.array([[30, 10, 0], [0, 0, 0], [0, 0, 5]])
    picture = render.confusion(matrix, CLASSES).astype(int)
    cells = picture[-8 - 3 * 45 : -8, -8 - 3 * 45 : -8][22::45, 22::45]
    np.testing.assert_array_equal(cells[1], 255)  # a class that is in no label
    np.testing.assert_array_equal(cells[2], [[255] * 3, [255] * 3, [8, 48, 107]])
    np.testing.assert_allclose(cells[0, 1], 255 + 0.25 * (np.array([8, 48, 107]) - 255), atol=1)
    many = render.confusion(np.eye(171, dtype=int), [f"class {k}" for k in range(171)])
    assert max(many.shape) < 1500 and (many == (8, 48, 107)).all(-1).any()
