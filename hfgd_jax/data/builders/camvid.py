"""CamVid, 11 classes, in either layout of its copies: see `Camvid.LAYOUT`."""

from collections.abc import Mapping
from pathlib import Path

import tensorflow_datasets as tfds

from hfgd_jax.data.builders import base, files
from hfgd_jax.errors import UserError


class Camvid(base.SegmentationBuilder):
    """Road scenes filmed from a car: 11 classes, raw id 11 is void."""

    NAME = "camvid"
    VERSION = tfds.core.Version("1.0.0")
    LAYOUT = (
        "SOURCE/{train,val}/{images/NAME.jpg,labels/NAME.png}, or the SegNet tutorial's "
        "SOURCE/{train,val}/NAME.png beside SOURCE/{train,val}annot/NAME.png; test likewise, if it is there"
    )
    COUNTS = {"train": 367, "val": 101, "test": 233}

    @classmethod
    def splits(cls, source: Path, options: base.Options = base.DEFAULTS) -> Mapping[str, base.RawSplit]:
        del options
        found = {}
        for name in ("train", "val", "test"):
            images, labels = source / name / "images", source / name / "labels"
            if not images.is_dir() and (source / "trainannot").is_dir():
                images, labels = source / name, source / f"{name}annot"
            if name == "test" and not images.is_dir():
                continue
            labelled = name != "test" or labels.is_dir()
            for folder in (images, labels) if labelled else (images,):
                if not folder.is_dir():
                    raise UserError(f"{folder}: no such folder; want {cls.LAYOUT}")
            found[name] = base.RawSplit(base.pairs(images, labels), labelled)
            if not found[name].records:
                raise UserError(f"{images}: no images ({', '.join(files.IMAGE_SUFFIXES)}) in it")
        return found
