"""COCO-Stuff in its 171 classes: the 164k set (PNG labels) and the 10k set (MATLAB labels)."""

from collections.abc import Mapping
from pathlib import Path

import tensorflow_datasets as tfds

from hfgd_jax.data.builders import base, files


class CocoStuff164k(base.SegmentationBuilder):
    """COCO 2017 with things and stuff in 171 classes; files hold 0-181 with gaps, 255 is unlabelled."""

    NAME = "coco_stuff164k"
    VERSION = tfds.core.Version("1.0.0")
    LAYOUT = (
        "SOURCE/{train2017,val2017}/NAME.jpg (or in SOURCE/images) and "
        "SOURCE/stuffthingmaps/{train2017,val2017}/NAME.png (or in SOURCE/annotations)"
    )
    COUNTS = {"train": 118287, "val": 5000}

    @classmethod
    def splits(cls, source: Path, options: base.Options = base.DEFAULTS) -> Mapping[str, base.RawSplit]:
        del options
        found = {}
        for name, part in (("train", "train2017"), ("val", "val2017")):
            images = files.first_folder(source, part, f"images/{part}", layout=cls.LAYOUT)
            labels = files.first_folder(
                source, f"stuffthingmaps/{part}", f"annotations/{part}", layout=cls.LAYOUT
            )
            found[name] = base.RawSplit(base.pairs(images, labels))
        return found


class CocoStuff10k(base.SegmentationBuilder):
    """10,000 images of COCO in the same 171 classes; files hold 1-182 with gaps, 0 is unlabelled."""

    NAME = "coco_stuff10k"
    VERSION = tfds.core.Version("1.0.0")
    LAYOUT = "SOURCE/{images/NAME.jpg,annotations/NAME.mat,imageLists/{train,test}.txt}"
    COUNTS = {"train": 9000, "test": 1000}

    @classmethod
    def splits(cls, source: Path, options: base.Options = base.DEFAULTS) -> Mapping[str, base.RawSplit]:
        del options
        images, labels, lists = (
            files.first_folder(source, name, layout=cls.LAYOUT)
            for name in ("images", "annotations", "imageLists")
        )
        return {
            name: base.RawSplit(base.listed(lists / f"{name}.txt", images, labels, ".mat", "S"))
            for name in ("train", "test")
        }
