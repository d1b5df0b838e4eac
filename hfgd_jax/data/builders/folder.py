"""The data set `folder`: a user's own images and masks.

SOURCE/images/**/NAME.jpg, SOURCE/masks/**/NAME.png, and either `classes.txt` (masks hold ids) or a colour
table (masks hold colours). Images and masks belong together by their paths without suffix; where all masks
have one more ending after the image's name, such as `_mask`, that is no part of it.
"""

import hashlib
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

import tensorflow_datasets as tfds

from hfgd_jax.data.builders import base, class_lists, files
from hfgd_jax.data.labels import LabelTable
from hfgd_jax.errors import UserError

IMAGE_SUFFIXES = (*files.IMAGE_SUFFIXES, ".bmp", ".webp")
MASK_SUFFIXES = (".png", ".bmp", ".gif", ".tif", ".tiff")
NAMES = ("train", "val", "test")


class Folder(base.SegmentationBuilder):
    """A user's images and masks.

    Splits are, the first that applies: the lists `train.txt`, `val.txt` and, if there is one, `test.txt`,
    of paths within `images` (with or without suffix), where files that no list names are left out; folders
    `train`, `val` and perhaps `test` in `images`, where there is nothing else; a share of the files that is
    drawn for validation (`Options`), of which each file's part depends on its name and the seed, so that it
    hardly changes when files are added. A test split without any mask is unlabelled.
    """

    NAME = "folder"
    VERSION = tfds.core.Version("1.0.0")
    DIVIDES = True
    LAYOUT = (
        "SOURCE/{images,masks} with the same names, and classes.txt (a name a line), "
        "or classes.csv or labelmap.txt (names and colours)"
    )

    @classmethod
    def table(cls, source: Path) -> LabelTable:
        return class_lists.read(source).table

    @classmethod
    def splits(cls, source: Path, options: base.Options = base.DEFAULTS) -> Mapping[str, base.RawSplit]:
        read = class_lists.read(source).read_label
        images, masks = (files.first_folder(source, name, layout=cls.LAYOUT) for name in ("images", "masks"))
        image_paths = files.by_key(images, IMAGE_SUFFIXES, deep=True)
        mask_paths = files.by_key(masks, MASK_SUFFIXES, deep=True)
        if ending := _ending(image_paths, mask_paths):
            mask_paths = files.by_key(masks, MASK_SUFFIXES, deep=True, ending=ending)
        files.refuse_images_for_labels(masks, mask_paths, deep=True)
        if not image_paths:
            raise UserError(f"{images}: no images ({', '.join(IMAGE_SUFFIXES)}) in it")
        found = {}
        for name, keys in _divide(source, sorted(image_paths | mask_paths), options).items():
            labelled = name != "test" or any(key in mask_paths for key in keys)
            records = [base.FileRecord(key, image_paths.get(key), mask_paths.get(key), read) for key in keys]
            found[name] = base.RawSplit(records, labelled)
        return found


def _ending(images: Set[str], masks: Set[str]) -> str:
    """What follows the image's name in every mask's, such as `_mask`; "" where a mask has an image's name."""
    if not masks or any(mask in images for mask in masks):
        return ""
    one = min(masks)
    whole = max((one[:end] for end in range(len(one)) if one[:end] in images), default=one, key=len)
    ending = one[len(whole) :]
    return ending if "/" not in ending and all(mask.endswith(ending) for mask in masks) else ""


def _divide(source: Path, keys: Sequence[str], options: base.Options) -> dict[str, Sequence[str]]:
    lists = {name: source / f"{name}.txt" for name in NAMES if (source / f"{name}.txt").is_file()}
    tops = {key.split("/")[0] for key in keys if "/" in key}
    flat = any("/" not in key for key in keys)
    if lists:
        if not {"train", "val"} <= set(lists):
            raise UserError(
                f"{source}: of the lists of splits only {', '.join(f'{name}.txt' for name in lists)}; "
                "want train.txt and val.txt, or none"
            )
        divided = {name: _listed(path, set(keys)) for name, path in lists.items()}
        _refuse_shared(divided, lists)
        return divided
    if not flat and {"train", "val"} <= tops <= set(NAMES):
        return {name: [key for key in keys if key.startswith(f"{name}/")] for name in NAMES if name in tops}
    if len(keys) < 2:
        raise UserError(f"{source}: {len(keys)} image; want two at least, for training and validation")
    drawn = sorted(keys, key=lambda key: hashlib.blake2b(f"{options.seed}/{key}".encode()).digest())
    count = min(max(1, round(options.val_ratio * len(keys))), len(keys) - 1)
    val = set(drawn[:count])
    return {"train": [key for key in keys if key not in val], "val": sorted(val)}


def _listed(path: Path, known: Set[str]) -> list[str]:
    """The keys that a list names."""
    names = [_as_key(name, known) for name in files.read_list(path)]
    absent = [name for name in names if name not in known]
    if absent:
        raise UserError(f"{path}: neither image nor mask of: {files.listing(absent)}")
    return names


def _as_key(name: str, known: Set[str]) -> str:
    name = name.removeprefix("./").removeprefix("images/")
    stem, point, suffix = name.rpartition(".")
    cut = name not in known and point and f".{suffix.lower()}" in (*IMAGE_SUFFIXES, *MASK_SUFFIXES)
    return stem if cut else name


def _refuse_shared(divided: Mapping[str, Sequence[str]], lists: Mapping[str, Path]) -> None:
    """Raises UserError where two lists name the same image: a score on training images is worthless."""
    names = list(divided)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            shared = sorted(set(divided[one]) & set(divided[other]))
            if shared:
                raise UserError(f"{lists[other]}: also in {lists[one].name}: {files.listing(shared)}")
