"""ADE20K (scene parsing), 150 classes: {images,annotations}/{training,validation}/NAME.{jpg,png}."""

from collections.abc import Mapping
from pathlib import Path

import tensorflow_datasets as tfds

from hfgd_jax.data.builders import base, files


class Ade20k(base.SegmentationBuilder):
    """Scenes of all kinds in 150 classes; raw id 0 is everything else and is ignored."""

    NAME = "ade20k"
    VERSION = tfds.core.Version("1.0.0")
    LAYOUT = "SOURCE/{images/NAME.jpg,annotations/NAME.png}, each in {training,validation}"
    COUNTS = {"train": 20210, "val": 2000}

    @classmethod
    def splits(cls, source: Path, options: base.Options = base.DEFAULTS) -> Mapping[str, base.RawSplit]:
        del options
        found = {}
        for name, folder in (("train", "training"), ("val", "validation")):
            places = (f"{part}/{folder}" for part in ("images", "annotations"))
            images, labels = (files.first_folder(source, place, layout=cls.LAYOUT) for place in places)
            found[name] = base.RawSplit(base.pairs(images, labels))
        return found
