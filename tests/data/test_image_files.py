"""Images that claim more pixels than there may be are known by their headers, wherever they are read."""

import struct
import zlib

import numpy as np
import pytest
import scipy.io
from PIL import EpsImagePlugin, Image, ImageFile

from hfgd_jax.data import builders, image_files, prepared
from hfgd_jax.data.builders import base, class_lists, files
from hfgd_jax.errors import UserError
from hfgd_jax.inference import inputs


def _png(width, height, depth=8, colour=2):
    chunks = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 64)), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return chunks


def _tiff(width, height):
    entries = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 200)]
    entries += [(277, 3, 1), (278, 4, height), (279, 4, 64)]
    body = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + b"\0" * 200


def _jpeg(width, height):
    frame = struct.pack(">BHHB", 8, height, width, 1) + b"\x01\x11\x00"
    return b"\xff\xd8\xff\xc0" + struct.pack(">H", len(frame) + 2) + frame + b"\xff\xd9"


def _bmp(width, height):
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header


BOMBS = {
    "far.png": _png(60_000, 60_000),
    "near.png": _png(14_000, 14_000),  # below the limits of OpenCV and, with a warning, of Pillow's twin
    "far.tif": _tiff(60_000, 60_000),
    "far.jpg": _jpeg(60_000, 60_000),
    "far.bmp": _bmp(30_000, 30_000),
}
SAYS = rf"\d+ pixels, and more than {image_files.MAX_PIXELS} are never decoded"


@pytest.fixture
def no_decoder(monkeypatch):
    """Decoding fails the test: a bomb is to be known by its header."""

    def decoder(*_, **__):
        raise AssertionError("was decoded")

    Image.init()  # one of Pillow's plugins makes an image when it is loaded
    monkeypatch.setattr(image_files.cv2, "imdecode", decoder)
    monkeypatch.setattr(Image.Image, "load", decoder)
    monkeypatch.setattr(ImageFile.ImageFile, "load", decoder)


@pytest.mark.parametrize("name", BOMBS)
def test_oversized_images_are_refused_by_their_header(name, tmp_path, no_decoder):
    path = tmp_path / name
    path.write_bytes(BOMBS[name])
    with pytest.raises(image_files.TooLargeError, match=SAYS):
        image_files.decode(BOMBS[name], -1)
    with pytest.raises(inputs.Unreadable, match=SAYS):
        inputs.read_image(path)
    with pytest.raises(UserError, match=rf"{name}: image has {SAYS}"):
        files.image_size(BOMBS[name], str(path))
    with pytest.raises(UserError, match=rf"{name}: label cannot be read \({SAYS}"):
        files.read_label(path)
    with pytest.raises(UserError, match=rf"{name}: mask cannot be read \({SAYS}"):
        class_lists.ColourMasks("classes.csv", np.array([(0, 0, 0)])).read(path)


def test_no_format_is_read_for_which_another_program_would_be_run(tmp_path, monkeypatch):
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""

    def run(*_, **__):
        raise AssertionError("Ghostscript was called")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(inputs.Unreadable, match="no image of a format that Pillow reads"):
        inputs.read_image(tmp_path / "a.jpg")


def test_images_at_the_limit_are_decoded(monkeypatch, tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (12, 10)).save(path)
    monkeypatch.setattr(image_files, "MAX_PIXELS", 120)
    assert inputs.read_image(path).shape == (10, 12, 3)
    monkeypatch.setattr(image_files, "MAX_PIXELS", 119)
    with pytest.raises(inputs.Unreadable, match="120 pixels, and more than 119"):
        inputs.read_image(path)


@pytest.mark.parametrize("part", ["image", "label"])
def test_oversized_images_in_a_prepared_set_are_corrupt_records(part, camvid_raw, tmp_path, monkeypatch):
    bomb = BOMBS["near.png"]

    def example(record, table, labelled):
        made = genuine(record, table, labelled)
        return made | {part: base.io.BytesIO(bomb)} if record.id.startswith("seq00") else made

    genuine = base.example
    monkeypatch.setattr(base, "example", example)
    builders.prepare("camvid", camvid_raw, tmp_path / "data", allow_partial=True, report=lambda line: None)
    split = prepared.open_split(tmp_path / "data", "camvid", "val")
    with pytest.raises(prepared.CorruptRecordError, match=rf"record 0 \(id 'seq00.*its {part} has {SAYS}"):
        split.example(0)
    assert split.example(1)["image"].shape == (80, 41, 3)


def test_a_huge_matlab_map_is_refused_before_it_is_read(tmp_path, monkeypatch):
    scipy.io.savemat(tmp_path / "a.mat", {"S": np.zeros((20, 10), np.uint8)}, do_compression=True)
    monkeypatch.setattr(image_files, "MAX_PIXELS", 199)
    monkeypatch.setattr(scipy.io, "loadmat", None)
    with pytest.raises(UserError, match=r"a.mat: label cannot be read \('S' is of shape \(20, 10\)"):
        files.read_mat(tmp_path / "a.mat", "S")


def test_a_matlab_7_3_map_is_answered_with_the_way_to_save_it(tmp_path):
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
    (tmp_path / "a.mat").write_bytes(header + bytes(400))
    with pytest.raises(UserError, match=r"a.mat: .*MATLAB 7.3 file, .*save\('a.mat', 'S', '-v7'\)"):
        files.read_mat(tmp_path / "a.mat", "S")
