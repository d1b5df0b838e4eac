"""hfgd_jax.inference.predict over files of every kind, with a stand-in for the model."""

import struct
import zlib

import jax
import numpy as np
import pytest
from PIL import Image, features

from hfgd_jax.data import builders, prepared
from hfgd_jax.data.labels import TABLES, LabelTable
from hfgd_jax.errors import UserError
from hfgd_jax.inference import predict

TABLE = LabelTable(
    "three", ("dark", "middle", "bright"), [(10, 0, 0), (0, 200, 0), (0, 0, 250)], {0: 0, 1: 1, 2: 2}
)


class Brightness:
    """Classes by the red channel: below 85, below 170, above. Remembers what it was asked."""

    def __init__(self, tiles=1):
        self.planned, self.seen, self.tiles = None, [], tiles

    def plan(self, sizes):
        assert self.planned is None
        self.planned = list(sizes)

    def __call__(self, picture):
        assert picture.dtype == np.uint8 and picture.shape[2] == 3
        self.seen.append(picture.shape[:2])
        red = picture[..., 0]
        return (red >= 85).astype(np.uint8) + (red >= 170), self.tiles


def _run(inputs, output, model=None, **options):
    lines, model = [], model or Brightness()
    inputs = inputs if isinstance(inputs, prepared.Split) else str(inputs)
    report = predict.run(model, inputs, output, table=TABLE, log=lines.append, **options)
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
    Image.fromarray(image).save(folder / "old.TGA")
    if features.check("avif"):
        Image.fromarray(image).save(folder / "new.avif", quality=95)
    turned = Image.fromarray(np.rot90(image, 1).copy())  # stored a quarter turn to the left
    exif = turned.getexif()
    exif[0x0112] = 6  # "show a quarter turn to the right"
    turned.save(folder / "turned.jpeg", exif=exif, quality=95)
    turned.save(folder / "turned_too.tif", exif=exif)


def test_every_kind_of_image(photos, tmp_path):
    _kinds(photos)
    before = _tree(photos)
    report, lines, model = _run(photos, tmp_path / "out")
    assert set(model.seen) == set(model.planned) == {(40, 60)}  # turned ones are planned as they are shown
    assert report.exit_code == 0 and not report.skipped and not report.stopped
    names = {path.stem for path in photos.iterdir()}
    assert {path.stem for path in report.masks} == names and len(names) == 12 + features.check("avif")
    assert len(lines) == len(names) and all("bright 50%" in line for line in lines)
    for name in names:
        _is_halves(_mask(tmp_path / "out", name))
        with Image.open(tmp_path / "out" / "overlays" / f"{name}.jpg") as overlay:
            assert overlay.size == (60, 40) and overlay.mode == "RGB"
    assert (tmp_path / "out" / "overlays" / "legend.png").exists()
    assert _tree(photos) == before
    assert not [name for name in _tree(tmp_path / "out") if ".tmp" in name]
    assert f"{len(names)} images: masks in" in report.summary()


def test_a_model_that_sees_one_class_everywhere_is_told_of_once(photos, tmp_path):
    for i in range(2):
        Image.fromarray(np.full((9, 9, 3), 230, np.uint8)).save(photos / f"{i}.png")
    report, _, _ = _run(photos, tmp_path / "one")
    assert report.summary().count("every pixel of every image is 'bright'") == 1
    Image.fromarray(_halves()).save(photos / "2.png")
    report, _, _ = _run(photos, tmp_path / "two")
    assert "every pixel" not in report.summary()


def test_transparency_is_dropped_and_the_overlay_blends(photos, tmp_path):
    clear = np.zeros((9, 9, 4), np.uint8)
    clear[..., :3] = 230
    Image.fromarray(clear).save(photos / "clear.png")
    Image.fromarray(clear | np.uint8([0, 0, 0, 255])).save(photos / "full.png")
    _, lines, _ = _run(photos, tmp_path / "out", alpha=0.5)
    assert lines[0].endswith("(transparent parts in the colour beneath)") and "transparent" not in lines[1]
    assert (_mask(tmp_path / "out", "clear") == 2).all()
    with Image.open(tmp_path / "out" / "overlays" / "clear.jpg") as overlay:
        np.testing.assert_allclose(np.asarray(overlay)[4, 4], (115, 115, 240), atol=3)


def test_of_many_images_in_a_file_the_first_is_taken_and_told(photos, tmp_path):
    first, *more = (Image.fromarray(np.full((9, 9, 3), grey, np.uint8)) for grey in (230, 0, 120))
    first.save(photos / "many.tif", save_all=True, append_images=more)
    _, lines, _ = _run(photos, tmp_path / "out", Brightness(tiles=2))
    assert (_mask(tmp_path / "out", "many") == 2).all()
    assert lines[0].endswith("(in 2 tiles; the first of 3 images in it)")


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (33, 129)])
def test_any_size(photos, tmp_path, size):
    Image.fromarray(np.full((*size, 3), 230, np.uint8)).save(photos / "a.png")
    report, _, model = _run(photos, tmp_path / "out")
    assert model.planned == model.seen == [size]
    assert report.exit_code == 0 and (_mask(tmp_path / "out", "a") == 2).all()


def test_tiles_are_told(photos, tmp_path):
    Image.fromarray(_halves()).save(photos / "a.png")
    _, lines, _ = _run(photos, tmp_path / "out", Brightness(tiles=12))
    assert lines[0].endswith("bright 50%  (in 12 tiles)")


# -- a split of a data set --


def test_a_split_by_its_records_names(camvid_dir, tmp_path):
    split = prepared.open_split(camvid_dir, "camvid", "val")
    report, lines, model = _run(split, tmp_path)
    assert [path.stem for path in report.masks] == [split.record_id(i) for i in range(len(split))]
    assert model.planned == model.seen == [split.size(i) for i in range(len(split))]
    assert lines[0].startswith("[1/5] camvid/val record 0 (seq00_f00000) -> ")
    assert len(list((tmp_path / "overlays").glob("*.jpg"))) == 5


def test_raw_ids_of_an_unlabelled_split_for_a_benchmarks_server(tmp_path):
    """Cityscapes' own ids, under names that its server takes: CITY_SEQ_FRAME_*.png."""
    raw, table = tmp_path / "raw", TABLES["cityscapes"]
    for part, folder in (("train", "aachen"), ("val", "bonn"), ("test", "berlin")):
        stem = f"{folder}_000000_000019"
        (raw / "leftImg8bit" / part / folder).mkdir(parents=True)
        Image.fromarray(_halves()).save(raw / "leftImg8bit" / part / folder / f"{stem}_leftImg8bit.png")
        if part != "test":
            (raw / "gtFine" / part / folder).mkdir(parents=True)
            label = Image.fromarray(np.full((40, 60), 7, np.uint8))
            label.save(raw / "gtFine" / part / folder / f"{stem}_gtFine_labelIds.png")
    builders.prepare("cityscapes", raw, tmp_path / "data", allow_partial=True, report=lambda line: None)
    split = prepared.open_split(tmp_path / "data", "cityscapes", "test")
    assert not split.labelled
    predict.run(Brightness(), split, tmp_path / "out", table=table, ids="raw", log=lambda line: None)
    (path,) = (tmp_path / "out" / "masks").iterdir()
    assert path.name == "berlin_000000_000019_labelIds.png"
    with Image.open(path) as file:
        assert file.mode == "L"
        ids = np.asarray(file)
    # train id 0 is road, 7 for the server, and train id 2 is building, 11
    assert (ids[:, :30] == 7).all() and (ids[:, 30:] == 11).all()


def test_raw_ids_beyond_a_byte(photos, tmp_path):
    Image.fromarray(_halves()).save(photos / "a.png")
    wide = LabelTable("wide", TABLE.classes, TABLE.palette, {300: 0, 1: 1, 2: 2})
    predict.run(Brightness(), str(photos), tmp_path, table=wide, ids="raw", log=lambda line: None)
    with Image.open(tmp_path / "masks" / "a_labelIds.png") as file:
        assert file.mode == "I;16"
        assert set(np.unique(np.asarray(file))) == {2, 300}


def test_a_corrupt_record_is_told_and_skipped(spoilt_dir, tmp_path):
    report, lines, _ = _run(prepared.open_split(spoilt_dir, "camvid", "train"), tmp_path)
    assert report.exit_code == 1 and len(report.masks) == 4
    assert ["skipped" in line for line in lines] == [False, False, True, True, False, False]
    assert "its image cannot be decoded" in lines[2]


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
    assert "no image of a format that Pillow reads" in lines[0]
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
    bright, dark = np.full((8, 8, 3), 230, np.uint8), np.zeros((8, 8, 3), np.uint8)
    Image.fromarray(bright).save(photos / "a.bmp")
    Image.fromarray(dark).save(photos / "a.png")
    Image.fromarray(bright).save(photos / "A.tif")
    Image.fromarray(dark).save(photos / "a_png.jpg")
    Image.fromarray(bright).save(photos / "b.c.png")
    report, lines, _ = _run(photos, tmp_path / "out")
    names = [path.stem for path in report.masks]
    assert names == ["A_tif", "a_bmp", "a_png_2", "a_png", "b.c"]
    assert [int(_mask(tmp_path / "out", name)[0, 0]) for name in names] == [2, 2, 0, 0, 2]
    assert lines[0] == "3 inputs are called 'a': their outputs are A_tif, a_bmp, a_png_2"
    assert "a.png -> " in lines[3] and "a_png_2.png" in lines[3]


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
    with pytest.raises(UserError, match=r"--output=.*is a file; want a folder"):
        _run(photos, tmp_path / "file")
    with pytest.raises(UserError, match=r"--output=.*cannot write"):
        _run(photos, tmp_path / "file" / "out")


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

    class Broken(Brightness):
        def __call__(self, picture):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _run(photos, tmp_path / "out", Broken())


def test_too_little_device_memory_skips_the_picture(photos, tmp_path):
    Image.fromarray(_halves()).save(photos / "a.png")

    class Full(Brightness):
        def __call__(self, picture):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    report, lines, _ = _run(photos, tmp_path / "out", Full())
    assert report.exit_code == 1
    assert "60x40 pixels: not enough device memory" in lines[0]
