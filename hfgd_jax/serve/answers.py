"""From the bytes of an image to the answer: pure functions, but for the model that predicts."""

import base64
import dataclasses
import json
import time
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

from hfgd_jax.data.image_files import TooLargeError
from hfgd_jax.data.labels import LabelTable
from hfgd_jax.inference import inputs, render
from hfgd_jax.inference.predict import Predictor, predict_one
from hfgd_jax.serve.limits import FORMATS, Limits, Refused

Form = Literal["png", "json"]
_TYPES: dict[Form, str] = {"png": "image/png", "json": "application/json"}


class Body(NamedTuple):
    """The bytes of an answer and their media type."""

    content: bytes
    media_type: str


@dataclasses.dataclass(frozen=True)
class Predicted:
    """A mask, and how it came about.

    Attributes:
        mask: train ids, of the image's size as it is shown.
        tiles: that it was made of.
        decoding, predicting: milliseconds.
    """

    mask: UInt8[np.ndarray, "h w"]
    tiles: int
    decoding: float
    predicting: float


def form_of(query: str | None, accept: str | None) -> Form:
    """What a client wants: `?format=`, else what its Accept header prefers, else the mask as PNG.

    Raises:
        Refused: 400 for an unknown `format`, 406 where it accepts neither.
    """
    if query is not None:
        if query not in _TYPES:
            raise Refused(400, f"format={query[:40]!r}: want {' or '.join(_TYPES)}")
        return "png" if query == "png" else "json"
    ranges = dict(map(_range, (accept or "*/*").split(",")))

    def quality(form: Form) -> float:
        kind = _TYPES[form]
        return next((ranges[r] for r in (kind, f"{kind.split('/')[0]}/*", "*/*") if r in ranges), 0.0)

    best = max(_TYPES, key=quality)
    if not quality(best):
        raise Refused(406, f"Accept: want {' or '.join(_TYPES.values())}")
    return best


def _range(text: str) -> tuple[str, float]:
    """A media range of an Accept header and its quality; one that cannot be read counts as 1."""
    name, *parameters = (part.strip().lower() for part in text.split(";"))
    given = next((p[2:] for p in parameters if p.startswith("q=")), "1")
    try:
        return name, min(1.0, max(0.0, float(given)))
    except ValueError:
        return name, 1.0


def predict(predictor: Predictor, data: bytes, limits: Limits) -> Predicted:
    """Decodes an image and predicts it.

    Args:
        predictor: gives the mask of an image.
        data: the bytes of a file of one of `FORMATS`.
        limits: of them the pixels.

    Raises:
        Refused: 413 for too many pixels, 422 for what is no image, is damaged, or does not fit the device.
    """
    start = time.perf_counter()
    try:
        image = inputs.read_bytes(data, formats=FORMATS, max_pixels=limits.pixels)
        decoded = time.perf_counter()
        mask, tiles = predict_one(predictor, image)
    except TooLargeError as error:
        raise Refused(413, f"image: {error}") from None
    except inputs.Unreadable as error:
        raise Refused(422, str(error)) from None
    done = time.perf_counter()
    return Predicted(mask, tiles, 1e3 * (decoded - start), 1e3 * (done - decoded))


def shares(mask: UInt8[np.ndarray, "h w"], table: LabelTable) -> list[dict[str, Any]]:
    """Of each class its id, name, colour (`#rrggbb`) and share of the pixels, the largest first."""
    counts = np.bincount(mask.ravel(), minlength=table.num_classes)
    return [
        {
            "id": int(k),
            "name": table.classes[k],
            "color": f"#{bytes(np.asarray(table.palette[k], np.uint8)).hex()}",
            "share": float(counts[k] / mask.size),
        }
        for k in np.argsort(-counts[: table.num_classes], kind="stable")
    ]


def body(predicted: Predicted, table: LabelTable, form: Form, waited: float) -> Body:
    """The answer in the form that is wanted.

    Args:
        predicted: the mask.
        table: the classes and their colours.
        form: `png`: the index PNG that `hfgd predict` writes; `json`: that in base64, with the rest.
        waited: milliseconds for the device.
    """
    png = render.mask_png(predicted.mask, table.palette)
    if form == "png":
        return Body(png, _TYPES[form])
    height, width = predicted.mask.shape
    described = {
        "width": width,
        "height": height,
        "tiles": predicted.tiles,
        "milliseconds": {
            "waiting": round(waited, 1),
            "decoding": round(predicted.decoding, 1),
            "predicting": round(predicted.predicting, 1),
        },
        "classes": shares(predicted.mask, table),
        "mask": base64.b64encode(png).decode(),
    }
    return Body(json.dumps(described).encode(), _TYPES[form])
