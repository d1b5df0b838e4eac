"""What stands in for a model, and images and hostile uploads to send to it."""

import io
import struct
import threading
import zlib

import numpy as np
from PIL import Image

from hfgd_jax.data.labels import LabelTable
from hfgd_jax.serve.limits import Limits

TABLE = LabelTable(
    "four",
    ("black", "red", "green", "blue"),
    [(0, 0, 0), (200, 0, 0), (0, 200, 0), (0, 0, 200)],
    {0: 0, 1: 1, 2: 2, 3: 3},
)
LIMITS = Limits(upload_bytes=200_000, upload_seconds=5.0, pixels=10_000, requests=3)


class ByBrightness:
    """The class of a pixel is its red, in quarters; notes the images, waits for `gate` where it is closed."""

    def __init__(self):
        self.images, self.gate, self.begun = [], threading.Event(), threading.Semaphore(0)
        self.at_once = self.most_at_once = 0
        self.gate.set()

    def plan(self, sizes):
        raise AssertionError("sizes are not known beforehand")

    def __call__(self, image):
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.images.append(image)
        self.begun.release()
        assert self.gate.wait(20)
        self.at_once -= 1
        return image[..., 0] // 64, 1


def photo(height=40, width=60, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def encoded(image, form="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, form, **options)
    return file.getvalue()


def png_header(width, height):
    """A PNG of a hundred bytes that claims this size."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(30))) + chunk(b"IEND", b"")


def form(data, name="image", filename="a.png", boundary="xyz"):
    """The bytes of a multipart body with one file."""
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n\r\n'
    return head.encode() + data + f"\r\n--{boundary}--\r\n".encode()


FORM = "multipart/form-data; boundary=xyz"
GOOD = encoded(photo())
# What is sent, with its Content-Type, and the status that it is refused with.
HOSTILE = {
    "empty": (b"", "image/png", 400),
    "text": (b"hello", "image/png", 422),
    "zeros": (bytes(5000), "image/jpeg", 422),
    "cut-png": (GOOD[: len(GOOD) // 2], "image/png", 422),
    "cut-jpeg": (encoded(photo(), "JPEG")[:400], "image/jpeg", 422),
    "bomb": (png_header(60_000, 60_000), "image/png", 413),
    "beyond-pillow": (png_header(2**31 - 1, 2**31 - 1), "image/png", 413),
    "zero-size": (png_header(0, 10), "image/png", 422),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "image/x-eps", 422),
    "floats": (encoded(np.zeros((9, 9), np.float32), "TIFF"), "image/tiff", 422),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "image/svg+xml", 422),
    "json": (b"{}", "application/json", 415),
    "urlencoded": (GOOD, "application/x-www-form-urlencoded", 415),
    "no-type": (GOOD, "", 415),
    "form-empty": (form(b""), FORM, 400),
    "form-cut": (form(GOOD)[:-80], FORM, 400),
    "form-other-field": (form(GOOD, name="file"), FORM, 400),
    "form-path": (form(b"x", filename="../../../etc/passwd"), FORM, 422),
    "form-no-boundary": (form(GOOD), "multipart/form-data", 400),
    "form-no-parts": (b"--xyz--\r\n", FORM, 400),
    "form-garbage": (b"garbage", FORM, 400),
    "form-two-files": (form(GOOD)[:-9] + b"\r\n" + form(GOOD), FORM, 400),
    "form-long-header": (form(GOOD, filename="a" * 10_000), FORM, 400),
}
