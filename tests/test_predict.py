"""hfgd_jax.predict over files of every kind, with a stand-in for the model."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from hfgd_jax import predict
from hfgd_jax.data import buckets
from hfgd_jax.data.labels import LabelTable
from hfgd_jax.errors import UserError

TABLE = LabelTable(
    "three", ("dark", "middle", "bright"), [(10, 0, 0), (0, 200, 0), (0, 0, 250)], {0: 0, 1: 1, 2: 2}
)
MEAN = np.array([123.675, 116.28, 103.53])


class Brightness:
    """Classes by the red channel: below 85, below 170, above. Remembers how it was called."""

    def __init__(self):
        self.calls = []

    def __call__(self, canvas, image_size, out_size):
        assert canvas.dtype == np.uint8 and canvas.shape[0] == 1 and canvas.shape[3] == 3
        beyond = np.ones(canvas.shape[1:3], bool)
        beyond[: image_size[0], : image_size[1]] = False
        assert (canvas[0][beyond] == (124, 116, 104)).all()  # the padding is the mean pixel
        self.calls.append((canvas.shape[1:3], image_size, out_size))
        red = canvas[0, : image_size[0], : image_size[1], 0]
        mask = (red >= 85).astype(np.uint8) + (red >= 170)
        return cv2.resize(mask, out_size[::-1], interpolation=cv2.INTER_NEAREST)


def _run(inputs, output, **options):
    lines, model = [], Brightness()
    report = predict.run(
        model, str(inputs), output, table=TABLE, mean_pixel=MEAN, say=lines.append, **options
    )
    return report, lines, model


def _mask(output, name):
    with Image.open(output / "masks" / f"{name}.png") as file:
        assert file.mode == "P"
        return np.asarray(file)


def _halves(height=40, width=60):
    """Left half dark, right half bright."""
    image = np.full((height, width, 3), 20, np.uint8)
    image[:, width // 2 :] = 230
    return image


def _tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


def _is_halves(mask):
    width = mask.shape[1]
    assert (mask[:, : width // 2] == 0).all() and (mask[:, width // 2 :] == 2).all()


def _kinds(folder):
    """One file of each kind, all of them halves."""
    image = _halves()
    grey = image[..., 0]
    Image.fromarray(image).save(folder / "photo.jpg", quality=95)
    Image.fromarray(grey).save(folder / "grey.png")
    Image.fromarray(np.dstack([image, np.full_like(grey, 128)])).save(folder / "rgba.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "wide.png")
    Image.fromarray(grey.astype(np.int32) * 257).save(folder / "int.tif")
    Image.fromarray(image).quantize(4).save(folder / "palette.gif")
    Image.fromarray(grey > 128).save(folder / "bits.bmp")
    Image.fromarray(np.dstack([grey, grey])).save(folder / "grey_alpha.webp", lossless=True)
    Image.fromarray(image).convert("CMYK").save(folder / "print.tiff")
    turned = Image.fromarray(np.rot90(image, 1).copy())  # stored a quarter turn to the left
    exif = turned.getexif()
    exif[0x0112] = 6  # "show a quarter turn to the right"
    turned.save(folder / "turned.jpeg", exif=exif, quality=95)
    turned.save(folder / "turned_too.tif", exif=exif)


def test_every_kind_of_image(photos, tmp_path):
    _kinds(photos)
    before = _tree(photos)
    report, lines, model = _run(photos, tmp_path / "out")
    assert set(model.calls) == {((65, 65), (40, 60), (40, 60))}
    assert report.exit_code == 0 and not report.skipped and not report.stopped
    names = {path.stem for path in photos.iterdir()}
    assert {path.stem for path in report.masks} == names and len(names) == 11
    assert len(lines) == len(names) and all("bright 50%" in line for line in lines)
    for name in names:
        _is_halves(_mask(tmp_path / "out", name))
        with Image.open(tmp_path / "out" / "overlays" / f"{name}.jpg") as overlay:
            assert overlay.size == (60, 40) and overlay.mode == "RGB"
    assert (tmp_path / "out" / "overlays" / "legend.png").exists()
    assert _tree(photos) == before
    assert not [name for name in _tree(tmp_path / "out") if ".tmp" in name]
    assert "11 images: masks in" in report.summary()


def test_transparency_is_dropped_and_the_overlay_blends(photos, tmp_path):
    clear = np.zeros((9, 9, 4), np.uint8)
    clear[..., :3] = 230
    Image.fromarray(clear).save(photos / "clear.png")
    _run(photos, tmp_path / "out", alpha=0.5)
    assert (_mask(tmp_path / "out", "clear") == 2).all()
    with Image.open(tmp_path / "out" / "overlays" / "clear.jpg") as overlay:
        np.testing.assert_allclose(np.asarray(overlay)[4, 4], (115, 115, 240), atol=3)


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (33, 129), (130, 128)])
def test_any_size(photos, tmp_path, size):
    Image.fromarray(np.full((*size, 3), 230, np.uint8)).save(photos / "a.png")
    for geometry, extra in (("align_corners", 1), ("half_pixel", 0)):
        report, _, model = _run(photos, tmp_path / geometry, geometry_name=geometry)
        (canvas, image_size, out_size) = model.calls[0]
        assert image_size == out_size == size
        assert all((side - extra) % 32 == 0 and side >= 32 for side in canvas)
        assert report.exit_code == 0 and (_mask(tmp_path / geometry, "a") == 2).all()


def test_many_sizes_share_few_canvases(photos, tmp_path):
    for i in range(16):
        Image.fromarray(_halves(100 + 20 * i, 400 - 20 * i)).save(photos / f"{i}.png")
    _, _, model = _run(photos, tmp_path / "out")
    assert len({out for _, _, out in model.calls}) == 16
    assert 1 < len({canvas for canvas, _, _ in model.calls}) <= buckets.MAX_SHAPES


def test_images_of_one_size_get_the_tightest_canvas(photos, tmp_path):
    for i in range(3):
        Image.fromarray(_halves(161, 162)).save(photos / f"{i}.png")
    _, _, model = _run(photos, tmp_path / "out")
    assert {canvas for canvas, _, _ in model.calls} == {(161, 193)}


def test_a_large_photograph_is_reduced_and_told(photos, tmp_path):
    Image.fromarray(_halves(2000, 3000)).save(photos / "large.jpg", quality=95)
    _, lines, model = _run(photos, tmp_path / "out")
    (canvas, image_size, out_size) = model.calls[0]
    assert image_size == out_size == (1365, 2048) and max(canvas) == 2049
    assert "(predicted at 2048x1365, enlarged to 3000x2000)" in lines[0]
    mask = _mask(tmp_path / "out", "large")
    assert mask.shape == (2000, 3000)
    _is_halves(mask)
    _, lines, model = _run(photos, tmp_path / "whole", max_side=4000)
    assert model.calls[0][1:] == ((2000, 3000), (2000, 3000)) and "enlarged" not in lines[0]


def test_input_scale_resizes_the_image_only(photos, tmp_path):
    Image.fromarray(_halves(100, 200)).save(photos / "a.png")
    _, lines, model = _run(photos, tmp_path / "out", input_scale=0.5)
    assert model.calls == [((65, 129), (50, 100), (100, 200))]
    _is_halves(_mask(tmp_path / "out", "a"))
    assert "enlarged" not in lines[0]


def _bomb(path):
    """A valid PNG header of 60000 x 60000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = b""
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def test_unreadable_files_are_told_and_skipped(photos, tmp_path):
    (photos / "a_text.jpg").write_text("not a picture\n")
    (photos / "b_empty.png").write_bytes(b"")
    Image.fromarray(_halves(400, 400)).save(photos / "c_cut.jpg")
    whole = (photos / "c_cut.jpg").read_bytes()
    (photos / "c_cut.jpg").write_bytes(whole[: len(whole) // 2])
    _bomb(photos / "d_bomb.png")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(photos / "e_float.tif")
    (photos / "f_gone.png").symlink_to(photos / "nowhere.png")
    Image.fromarray(_halves()).save(photos / "z_good.png")
    report, lines, _ = _run(photos, tmp_path / "out")
    assert report.exit_code == 1
    assert [path.name for path in report.masks] == ["z_good.png"]
    assert len(report.skipped) == 6 and len(lines) == 7
    for path, line in zip(sorted(photos.iterdir())[:6], lines, strict=False):
        assert f"{path}: skipped: " in line and "\n" not in line
    assert "cannot identify image file" in lines[0]
    assert "truncated" in lines[2]
    assert "3600000000 pixels" in lines[3]
    assert "floats" in lines[4]
    assert "No such file" in lines[5]
    assert sorted(_tree(tmp_path / "out")) == [
        "masks/z_good.png",
        "overlays/legend.png",
        "overlays/z_good.jpg",
    ]
    assert "6 could not be read" in report.summary()


def test_alike_names_get_files_of_their_own(photos, tmp_path):
    bright = np.full((8, 8, 3), 230, np.uint8)
    dark = np.zeros((8, 8, 3), np.uint8)
    Image.fromarray(bright).save(photos / "a.bmp")
    Image.fromarray(dark).save(photos / "a.png")
    Image.fromarray(bright).save(photos / "A.tif")
    Image.fromarray(dark).save(photos / "a_png.jpg")
    Image.fromarray(bright).save(photos / "b.c.png")
    report, lines, _ = _run(photos, tmp_path / "out")
    names = [path.stem for path in report.masks]
    assert names == ["A_tif", "a_bmp", "a_png_2", "a_png", "b.c"]
    assert [int(_mask(tmp_path / "out", name)[0, 0]) for name in names] == [2, 2, 0, 0, 2]
    assert "a.png -> " in lines[2] and "a_png_2.png" in lines[2]


def test_alike_names_of_different_folders(tmp_path):
    for sub in ("x", "y"):
        (tmp_path / "in" / sub).mkdir(parents=True)
        Image.fromarray(_halves()).save(tmp_path / "in" / sub / "a.png")
    report, _, _ = _run(tmp_path / "in" / "**" / "*.png", tmp_path / "out")
    assert [path.name for path in report.masks] == ["a_png.png", "a_png_2.png"]


def test_folders_are_taken_one_level_deep(photos, tmp_path):
    (photos / "deeper").mkdir()
    (photos / "folder.png").mkdir()
    for name in ("a.PNG", "deeper/b.png", ".hidden.png"):
        Image.fromarray(_halves()).save(photos / name)
    (photos / "notes.txt").write_text("no image, and not taken for one")
    report, _, _ = _run(photos, tmp_path / "out")
    assert [path.name for path in report.masks] == ["a.png"] and report.exit_code == 0
    report, _, _ = _run(photos / "**" / "*", tmp_path / "all")
    assert [path.name for path in report.masks] == ["a.png", "b.png"]


def test_a_single_file_is_taken_whatever_its_name(photos, tmp_path):
    Image.fromarray(_halves()).save(photos / "odd [1].data", format="PNG")
    report, _, _ = _run(photos / "odd [1].data", tmp_path / "out")
    assert [path.name for path in report.masks] == ["odd [1].png"]


@pytest.mark.parametrize("inputs", ["nowhere", "nowhere.png", "none_*.png", "empty"])
def test_no_input_is_the_users_mistake(tmp_path, inputs):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("")
    with pytest.raises(
        UserError, match=f"--input=.*{inputs.replace('*', '.')}: no|the folder holds no image"
    ):
        _run(tmp_path / inputs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_existing_outputs_are_kept_unless_told(photos, tmp_path):
    out = tmp_path / "out"
    for name in ("a", "b"):
        Image.fromarray(_halves()).save(photos / f"{name}.png")
    _run(photos / "a.png", out)
    before = _tree(out)
    with pytest.raises(UserError, match=r"a\.png exists \(and 1 more\).*--overwrite"):
        _run(photos, out)
    assert _tree(out) == before
    Image.fromarray(255 - _halves()).save(photos / "a.png")
    report, _, _ = _run(photos, out, overwrite=True)
    assert len(report.masks) == 2 and (_mask(out, "a")[:, :30] == 2).all()


def test_output_may_be_the_input_folder(photos):
    Image.fromarray(_halves()).save(photos / "a.png")
    before = _tree(photos)
    _run(photos, photos)
    for again in (photos, photos / "**" / "*.*"):  # the folder holds outputs by now
        report, _, _ = _run(again, photos, overwrite=True)
        assert len(report.masks) == 1
    after = _tree(photos)
    assert {name: after[name] for name in before} == before
    assert sorted(set(after) - set(before)) == ["masks/a.png", "overlays/a.jpg", "overlays/legend.png"]


def test_inputs_are_never_replaced(tmp_path):
    (tmp_path / "masks").mkdir()
    Image.fromarray(_halves()).save(tmp_path / "masks" / "a.png")
    before = _tree(tmp_path)
    with pytest.raises(UserError, match="choose another output"):
        _run(tmp_path / "masks", tmp_path, overwrite=True)
    (tmp_path / "links" / "masks").mkdir(parents=True)
    (tmp_path / "links" / "masks" / "a.png").symlink_to(tmp_path / "masks" / "a.png")
    with pytest.raises(UserError, match="choose another output"):
        _run(tmp_path / "masks", tmp_path / "links", overwrite=True)
    assert {name: data for name, data in _tree(tmp_path).items() if "links" not in name} == before


def test_an_output_that_cannot_be_is_the_users_mistake(photos, tmp_path):
    Image.fromarray(_halves()).save(photos / "a.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--output=.*cannot write"):
        _run(photos, tmp_path / "file")


def test_stopping_between_images(photos, tmp_path):
    for i in range(5):
        Image.fromarray(_halves()).save(photos / f"{i}.png")
    asked = []
    report, _, _ = _run(photos, tmp_path / "out", should_stop=lambda: asked.append(1) or len(asked) > 2)
    assert report.stopped and [path.name for path in report.masks] == ["0.png", "1.png"]
    assert sorted(_tree(tmp_path / "out" / "masks")) == ["0.png", "1.png"]


def test_ctrl_c_leaves_whole_files_only(photos, tmp_path, monkeypatch):
    for i in range(3):
        Image.fromarray(_halves()).save(photos / f"{i}.png")
    write, times = Image.Image.save, []

    def interrupted(self, *args, **options):
        write(self, *args, **options)
        times.append(1)
        if len(times) == 5:  # the legend, overlay and mask, and in the midst of the second image's mask
            raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _run(photos, tmp_path / "out")
    files = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert sorted(p.name for p in files) == ["0.jpg", "0.png", "1.jpg", "legend.png"]
    for path in files:
        with Image.open(path) as image:
            image.load()


def test_errors_of_the_model_are_not_hidden(photos, tmp_path):
    Image.fromarray(_halves()).save(photos / "a.png")

    def broken(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        predict.run(broken, str(photos), tmp_path / "out", table=TABLE, mean_pixel=MEAN)
