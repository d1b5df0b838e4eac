"""The data set `shapes`: generated street scenes, for which nothing is downloaded (`data/scenes.py`)."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8

from hfgd_jax.data import scenes
from hfgd_jax.data.builders import base

SPLITS = {"train": 320, "val": 64}  # scenes


@dataclasses.dataclass(frozen=True)
class SceneRecord:
    """A generated scene as a record."""

    split: str
    index: int

    @property
    def id(self) -> str:
        return f"{self.split}_{self.index:04d}"

    @property
    def image_name(self) -> str:
        return f"shapes/{self.id}"

    label_name = image_name

    def image_bytes(self) -> bytes:
        image, _ = _scene(self.split, self.index)
        return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()

    def raw_label(self) -> UInt8[np.ndarray, "h w"]:
        return _scene(self.split, self.index)[1]


@functools.lru_cache(maxsize=1)
def _scene(split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    return scenes.scene(list(SPLITS).index(split), index)


class Shapes(base.SegmentationBuilder):
    """Generated street scenes of 160x192 pixels: 320 for training, 64 for validation, 9 classes."""

    NAME = "shapes"
    VERSION = tfds.core.Version("1.0.0")
    EMBEDDED = True

    @classmethod
    def splits(cls, source: Path, options: base.Options = base.DEFAULTS) -> Mapping[str, base.RawSplit]:
        del source, options
        return {name: base.RawSplit([SceneRecord(name, i) for i in range(n)]) for name, n in SPLITS.items()}
