"""Cityscapes, fine annotations, 19 classes: {leftImg8bit,gtFine}/{train,val,test}/CITY/NAME_*.png."""

from collections.abc import Mapping
from pathlib import Path

import tensorflow_datasets as tfds

from hfgd_jax.data.builders import base, files

_IMAGE, _LABEL = "_leftImg8bit", "_gtFine_labelIds"


class Cityscapes(base.SegmentationBuilder):
    """Streets of 50 cities in 19 of 34 label ids; the others are ignored.

    The test split has no labels: what `gtFine/test` holds are placeholders. The table keeps the label ids, in
    which the benchmark's server wants predictions (`LabelTable.to_raw_ids`).
    """

    NAME = "cityscapes"
    VERSION = tfds.core.Version("1.0.0")
    LAYOUT = (
        f"SOURCE/leftImg8bit/{{train,val}}/CITY/NAME{_IMAGE}.png and "
        f"SOURCE/gtFine/{{train,val}}/CITY/NAME{_LABEL}.png; leftImg8bit/test likewise, if it is there"
    )
    COUNTS = {"train": 2975, "val": 500, "test": 1525}

    @classmethod
    def splits(cls, source: Path, options: base.Options = base.DEFAULTS) -> Mapping[str, base.RawSplit]:
        del options
        found = {}
        for name in ("train", "val"):
            images = files.first_folder(source, f"leftImg8bit/{name}", layout=cls.LAYOUT)
            labels = files.first_folder(source, f"gtFine/{name}", layout=cls.LAYOUT)
            image_paths = files.by_key(images, (".png",), deep=True, ending=_IMAGE)
            label_paths = files.by_key(labels, (".png",), deep=True, ending=_LABEL)
            keys = sorted(image_paths | label_paths)
            records = [_record(key, image_paths.get(key), label_paths.get(key)) for key in keys]
            found[name] = base.RawSplit(records)
        test = files.by_key(source / "leftImg8bit" / "test", (".png",), deep=True, ending=_IMAGE)
        if test:
            found["test"] = base.RawSplit([_record(key, path, None) for key, path in test.items()], False)
        return found


def _record(key: str, image: Path | None, label: Path | None) -> base.FileRecord:
    return base.FileRecord(Path(key).name, image, label)
