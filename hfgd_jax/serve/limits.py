"""What a server accepts, and what it says to all else."""

import dataclasses
from collections.abc import Mapping

# Of Pillow's formats: decoders that run inside this process, on files that browsers and cameras write.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF")

# Sides of canvases, up to `tiles.MAX_SIDE`: images of any size compile for few shapes.
SIDES = (128, 256, 384, 512, 640, 768, 1024, 1280, 1536, 1792, 2048)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What bounds a server's memory and time.

    Attributes:
        upload_bytes: of a request's body.
        upload_seconds: in which the body has to come.
        pixels: of an image, as its header has them.
        requests: that are read, wait or are predicted at once; one more is answered with 503.
        connections: at once; one more is answered with 503.
        shapes: that the model is compiled for, until all are forgotten and made anew.
    """

    upload_bytes: int = 32 * 2**20
    upload_seconds: float = 60.0
    pixels: int = 50_000_000
    requests: int = 16
    connections: int = 64
    shapes: int = 24


class Refused(Exception):
    """A request that is not carried out: the HTTP status, one line for the client, and headers."""

    def __init__(self, status: int, line: str, headers: Mapping[str, str] | None = None):
        super().__init__(line)
        self.status, self.line, self.headers = status, " ".join(line.split()), dict(headers or {})
