"""The owners' raw layouts in miniature, quirks included: prepared, checked, read back, a batch of each."""

import json

import numpy as np
import pytest
import scipy.io
from PIL import Image

from hfgd_jax import config as configuration
from hfgd_jax.data import builders, pipeline, prepared
from hfgd_jax.data.label_tables import coco_stuff, pascal_context
from hfgd_jax.data.labels import TABLES
from hfgd_jax.errors import UserError
from hfgd_jax.evaluation import evaluator
from hfgd_jax.tools import check_dataset
from hfgd_jax.training import loop as training

pytestmark = pytest.mark.usefixtures("light_backbone_everywhere")
SIZES = [(37, 53), (48, 64), (40, 40)]


def quiet(line):
    """A progress report that says nothing."""


def raw_map(ids, size, shift):
    """A label map in which all of the ids occur, in stripes of a pixel."""
    return np.resize(np.roll(np.asarray(ids), shift), size[0] * size[1]).reshape(size)


def write_image(path, size, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(size[0]).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, quality=90)


def write_png(path, ids):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids.astype(np.uint8)).save(path)


def write_palette_png(path, ids):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids.astype(np.uint8), mode="P")
    image.putpalette(np.arange(768, dtype=np.uint8)[::-1].tobytes())
    image.save(path)


def write_mat(path, **variables):
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, variables, do_compression=True)


def splits_of(dataset, raw, tmp_path):
    """Prepares and checks; gives the splits by name."""
    reports = check_dataset.check(dataset, raw=raw)
    assert [line for report in reports for _, line in report.problems] == []
    builders.prepare(dataset, raw, tmp_path / "data", allow_partial=True, report=quiet)
    reports = check_dataset.check(dataset, data_dir=tmp_path / "data")
    assert [line for report in reports for _, line in report.problems] == []
    names = prepared.split_names(tmp_path / "data", dataset)
    splits = {name: prepared.open_split(tmp_path / "data", dataset, name) for name in names}
    config = configuration.default().data
    config.update({"crop": (33, 33), "threads": 1, "dataset": dataset})
    with pipeline.train_batches(
        splits["train"], config, batch_size=2, seed=0, mean_pixel=(1, 2, 3)
    ) as batches:
        batch = next(batches)
    assert batch["image"].shape == (2, 33, 33, 3) and batch["label"].shape == (2, 33, 33)
    classes = splits["train"].table.num_classes
    assert set(np.unique(batch["label"])) <= {*range(classes), 255} and (batch["label"] < classes).any()
    return splits


def train_and_score(dataset, tmp_path, splits):
    """One step of a tiny FCN and its evaluation, and the evaluation once more by itself."""
    config = configuration.default()
    configuration.set_method(config, "fcn")
    configuration.set_tiny(config)
    config.data.update({"dataset": dataset, "data_dir": str(tmp_path / "data"), "eval_split": "val"})
    config.data.num_classes = splits["train"].table.num_classes
    config.train.steps, config.mesh.data = 1, 1
    assert training.run(config, str(tmp_path / "run")) == 0
    first = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert first["step"] == 1 and set(first["per_class"]) == set(splits["train"].table.classes)
    seen = sum(iou is not None for iou in first["per_class"].values())
    assert first["mIoU"] is not None and seen > 1
    assert evaluator.run(config, str(tmp_path / "run"), "latest") == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == first


def assert_labels(split, raws, expected):
    """Each record's label is its raw map, id by id as `expected` says."""
    assert [split.record_id(i) for i in range(len(split))] == list(raws)
    lookup = np.full(max(expected) + 1, 254)
    for raw, train in expected.items():
        lookup[raw] = train
    for i, raw in enumerate(raws.values()):
        example = split.example(i)
        assert example["image"].shape == (*raw.shape, 3) and split.size(i) == raw.shape
        np.testing.assert_array_equal(example["label"], lookup[raw])


def test_ade20k_is_prepared_with_its_ids(tmp_path):
    raws = {"training": {}, "validation": {}}
    for part, prefix in (("training", "train"), ("validation", "val")):
        for i, size in enumerate(SIZES):
            name = f"ADE_{prefix}_{i + 1:08d}"
            raws[part][name] = raw_map(range(151), size, i)
            write_image(tmp_path / "raw" / "images" / part / f"{name}.jpg", size, "L" if i == 1 else "RGB")
            write_png(tmp_path / "raw" / "annotations" / part / f"{name}.png", raws[part][name])
    splits = splits_of("ade20k", tmp_path / "raw", tmp_path)
    assert list(splits) == ["train", "val"]
    expected = {0: 255} | {i: i - 1 for i in range(1, 151)}
    assert_labels(splits["train"], raws["training"], expected)
    assert_labels(splits["val"], raws["validation"], expected)
    assert splits["val"].table.classes[12] == "person"
    grey = splits["train"].example(1)["image"]
    assert (grey == grey[..., :1]).all()


def cityscapes_raw(folder, test=True):
    raws = {}
    for part, cities in (("train", ("aachen", "ulm")), ("val", ("munster",)), ("test", ("berlin",))):
        for city in cities if test or part != "test" else ():
            for i in range(2):
                name = f"{city}_{i:06d}_000019"
                raws.setdefault(part, {})[name] = raw_map(range(34), (40, 80), i)
                write_image(folder / "leftImg8bit" / part / city / f"{name}_leftImg8bit.png", (40, 80))
                labels = folder / "gtFine" / part / city
                # the owners' test labels are placeholders
                ids = np.zeros((40, 80), int) if part == "test" else raws[part][name]
                write_png(labels / f"{name}_gtFine_labelIds.png", ids)
                write_png(labels / f"{name}_gtFine_instanceIds.png", ids)
                Image.new("RGBA", (80, 40)).save(labels / f"{name}_gtFine_color.png")
                (labels / f"{name}_gtFine_polygons.json").write_text("{}")
    return raws


def test_cityscapes_is_prepared_with_its_ids_and_an_unlabelled_test_split(tmp_path):
    raws = cityscapes_raw(tmp_path / "raw")
    splits = splits_of("cityscapes", tmp_path / "raw", tmp_path)
    train_and_score("cityscapes", tmp_path, splits)
    assert list(splits) == ["train", "val", "test"]
    evaluated = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    expected = dict.fromkeys(range(34), 255) | {raw: train for train, raw in enumerate(evaluated)}
    assert_labels(splits["train"], raws["train"], expected)
    assert_labels(splits["val"], raws["val"], expected)
    test = splits["test"]
    assert not test.labelled and set(test.example(0)) == {"image", "id"}
    assert [test.record_id(i) for i in range(2)] == list(raws["test"])
    back = splits["train"].table.to_raw_ids(np.arange(19, dtype=np.uint8)[None])
    assert back.tolist() == [evaluated] and back.dtype == np.uint8


def test_cityscapes_without_test_images_has_two_splits(tmp_path):
    cityscapes_raw(tmp_path / "raw", test=False)
    assert list(builders.BUILDERS["cityscapes"].splits(tmp_path / "raw")) == ["train", "val"]


@pytest.mark.parametrize("layout", ["flat", "owners"])
def test_coco_stuff_164k_is_prepared_from_both_layouts(layout, tmp_path):
    images, labels = ("", "stuffthingmaps") if layout == "flat" else ("images", "annotations")
    present = [i - 1 for i, _ in coco_stuff.CLASSES]
    raws = {"train2017": {}, "val2017": {}}
    for part in raws:
        for i, size in enumerate(SIZES):
            name = f"{i:012d}"
            raws[part][name] = raw_map([*present, 255], size, i)
            write_image(tmp_path / "raw" / images / part / f"{name}.jpg", size, "L" if i == 0 else "RGB")
            write = write_palette_png if i == 2 else write_png
            write(tmp_path / "raw" / labels / part / f"{name}.png", raws[part][name])
    splits = splits_of("coco_stuff164k", tmp_path / "raw", tmp_path)
    expected = {raw: train for train, raw in enumerate(present)} | {255: 255}
    assert expected[0] == 0 and expected[181] == 170  # person, wood
    assert_labels(splits["train"], raws["train2017"], expected)
    assert_labels(splits["val"], raws["val2017"], expected)
    # street sign has an id and was never drawn
    bad = tmp_path / "raw" / labels / "val2017" / "000000000000.png"
    write_png(bad, np.full(SIZES[0], 11))
    with pytest.raises(UserError, match=r"000000000000\.png: label value 11 is not in the label table"):
        builders.prepare(
            "coco_stuff164k", tmp_path / "raw", tmp_path / "other", allow_partial=True, report=quiet
        )


def coco_stuff_10k_raw(folder):
    present = [i for i, _ in coco_stuff.CLASSES]
    raws = {}
    for i, size in enumerate([*SIZES, *SIZES]):
        name = f"COCO_train2014_{i:012d}"
        raws[name] = raw_map([0, *present], size, i)
        write_image(folder / "images" / f"{name}.jpg", size)
        captions = np.array(["a cat", "two dogs"], object)
        write_mat(folder / "annotations" / f"{name}.mat", S=raws[name].astype(np.uint16), captions=captions)
    (folder / "imageLists").mkdir()
    names = list(raws)
    (folder / "imageLists" / "train.txt").write_text("\n".join(names[:4][::-1]) + "\n")
    (folder / "imageLists" / "test.txt").write_text("\r\n".join(names[4:]))
    return raws


def test_coco_stuff_10k_is_prepared_from_matlab_files(tmp_path):
    raws = coco_stuff_10k_raw(tmp_path / "raw")
    splits = splits_of("coco_stuff10k", tmp_path / "raw", tmp_path)
    assert list(splits) == ["train", "test"] and splits["test"].labelled
    expected = {0: 255} | {raw: train for train, (raw, _) in enumerate(coco_stuff.CLASSES)}
    names = list(raws)
    assert_labels(
        splits["train"], {name: raws[name] for name in names[:4][::-1]}, expected
    )  # the list's order
    assert_labels(splits["test"], {name: raws[name] for name in names[4:]}, expected)


def test_both_coco_stuffs_have_the_same_train_ids():
    small, large = TABLES["coco_stuff10k"], TABLES["coco_stuff164k"]
    assert small.classes == large.classes
    assert {raw - 1: train for raw, train in small.raw_ids.items() if raw} == {
        raw: train for raw, train in large.raw_ids.items() if raw != 255
    }


def spoil_mat_bytes(path):
    path.write_bytes(path.read_bytes()[:200])
    return "label cannot be read"


def spoil_mat_variable(path):
    write_mat(path, T=np.zeros(SIZES[0]))
    return "no variable 'S' in it"


def spoil_mat_kind(path):
    write_mat(path, S=np.full(SIZES[0], 0.5))
    return "'S' is float64 .*; want a map of whole numbers"


def spoil_mat_size(path):
    write_mat(path, S=np.ones((5, 6)))
    return "label is 6x5, but its image is 53x37"


@pytest.mark.parametrize("spoil", [spoil_mat_bytes, spoil_mat_variable, spoil_mat_kind, spoil_mat_size])
def test_bad_matlab_files_are_named(spoil, tmp_path):
    coco_stuff_10k_raw(tmp_path / "raw")
    path = tmp_path / "raw" / "annotations" / "COCO_train2014_000000000000.mat"
    message = spoil(path)
    with pytest.raises(UserError, match=f"{path}: {message}"):
        builders.prepare("coco_stuff10k", tmp_path / "raw", tmp_path / "x", allow_partial=True, report=quiet)


def test_lists_that_name_missing_files_are_errors(tmp_path):
    coco_stuff_10k_raw(tmp_path / "raw")
    path = tmp_path / "raw" / "imageLists" / "test.txt"
    splits = builders.BUILDERS["coco_stuff10k"].splits
    for text, message in (
        ("a\nb\n", "test.txt: neither image nor label in .* of: a, b"),
        ("a\na\n", "test.txt: more than once in this list: a"),
        ("\n", "test.txt: no names"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            splits(tmp_path / "raw")
    path.unlink()
    with pytest.raises(UserError, match=r"test.txt: cannot be read"):
        splits(tmp_path / "raw")
    (tmp_path / "raw" / "annotations").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="annotations: no such folder; want SOURCE/"):
        splits(tmp_path / "raw")


OWNERS, ALPHABETICAL = [n for n, _ in pascal_context.CLASSES], sorted(n for n, _ in pascal_context.CLASSES)


def pascal_raw(folder, kind, lists="."):
    """Labels of one kind; the owners' numbers of a name are its place in their list, or among the 459."""
    ids = {"59_context_labels": range(60), "SegmentationClassContext": range(60), "trainval": range(460)}[
        kind
    ]
    raws = {}
    for i, size in enumerate([(37, 53), (48, 64), (40, 40), (41, 41)]):
        name = f"2008_{i:06d}"
        raws[name] = raw_map(ids, size, i)
        write_image(folder / "JPEGImages" / f"{name}.jpg", size)
        if kind == "trainval":
            write_mat(folder / kind / f"{name}.mat", LabelMap=raws[name].astype(np.uint16))
        else:
            write_palette_png(folder / kind / f"{name}.png", raws[name])
    write_image(folder / "JPEGImages" / "2007_000001.jpg", (20, 20))  # VOC has more images than the lists
    names = list(raws)
    (folder / lists).mkdir(parents=True, exist_ok=True)
    (folder / lists / "train.txt").write_text("\n".join(names[:2]))
    (folder / lists / "val.txt").write_text("\n".join(names[2:]))
    return raws


@pytest.mark.parametrize(
    ("kind", "lists", "expected"),
    [
        ("59_context_labels", ".", {0: 255} | {i + 1: i for i in range(59)}),
        (
            "SegmentationClassContext",
            "ImageSets/SegmentationContext",
            {0: 255} | {i + 1: OWNERS.index(name) for i, name in enumerate(ALPHABETICAL)},
        ),
        (
            "trainval",
            "ImageSets/Main",
            dict.fromkeys(range(460), 255) | {full: i for i, (_, full) in enumerate(pascal_context.CLASSES)},
        ),
    ],
)
def test_pascal_context_is_prepared_from_every_kind_of_labels(kind, lists, expected, tmp_path):
    raws = pascal_raw(tmp_path / "raw", kind, lists)
    splits = splits_of("pascal_context", tmp_path / "raw", tmp_path)
    names = list(raws)
    assert splits["train"].table.classes == tuple(OWNERS)
    assert_labels(splits["train"], {name: raws[name] for name in names[:2]}, expected)
    assert_labels(splits["val"], {name: raws[name] for name in names[2:]}, expected)


def test_pascal_contexts_59_labels_txt_overrides_the_order(tmp_path):
    pascal_raw(tmp_path / "raw", "59_context_labels")
    spelt = {"table": "dining table", "bedclothes": "bedcloth", "cloth": "clothes"}
    names = [spelt.get(name, name) for name in ALPHABETICAL]
    path = tmp_path / "raw" / "59_labels.txt"
    path.write_text("".join(f"{i}: {name}\n" for i, name in enumerate(names, start=1)))
    table = builders.BUILDERS["pascal_context"].table(tmp_path / "raw")
    assert table.classes == tuple(OWNERS)
    assert table.raw_ids == {0: 255} | {i + 1: OWNERS.index(name) for i, name in enumerate(ALPHABETICAL)}
    for text, message in (
        ("1 aeroplane\n", "'1 aeroplane': want lines such as '2: aeroplane'"),
        ("1: aeroplane\n2: bag\n", "no line for bed, bedclothes"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=f"59_labels.txt: {message}"):
            builders.BUILDERS["pascal_context"].table(tmp_path / "raw")


def test_pascal_contexts_labels_txt_overrides_the_ids(tmp_path):
    pascal_raw(tmp_path / "raw", "trainval")
    full = {number: name for name, number in pascal_context.CLASSES}
    lines = [f"{i}: {full.get(i, f'thing{i}')}" for i in range(1, 460)]
    lines[104] = "105: clothes"  # another class than cloth, and where curtain was
    (tmp_path / "raw" / "labels.txt").write_text("\n".join([*lines, "460: curtain"]))
    table = builders.BUILDERS["pascal_context"].table(tmp_path / "raw")
    assert table.raw_ids[80] == OWNERS.index("cloth") and table.raw_ids[460] == OWNERS.index("curtain")
    assert table.raw_ids[105] == 255


def test_ids_of_the_59_among_the_459_are_alphabetical_as_the_full_list():
    ids = dict(pascal_context.CLASSES)
    assert [name for name, _ in sorted(ids.items(), key=lambda item: item[1])] == ALPHABETICAL
    assert len(ids) == 59 and max(ids.values()) <= pascal_context.FULL


@pytest.mark.parametrize(
    "dataset", ["ade20k", "cityscapes", "coco_stuff164k", "coco_stuff10k", "pascal_context"]
)
def test_a_wrong_folder_is_an_error_with_the_layout(dataset, tmp_path):
    with pytest.raises(UserError, match="no such folder; want SOURCE/"):
        builders.prepare(dataset, tmp_path, tmp_path / "data", report=quiet)


def test_empty_folders_are_errors(tmp_path):
    for part in ("images/training", "images/validation", "annotations/training", "annotations/validation"):
        (tmp_path / "raw" / part).mkdir(parents=True)
    with pytest.raises(UserError, match="'ade20k': no images in split 'train'; want SOURCE/"):
        builders.prepare("ade20k", tmp_path / "raw", tmp_path / "data", allow_partial=True, report=quiet)


def test_the_owners_counts_are_those_of_the_paper():
    assert {name: builder.COUNTS for name, builder in builders.BUILDERS.items() if builder.COUNTS} == {
        "ade20k": {"train": 20210, "val": 2000},
        "camvid": {"train": 367, "val": 101, "test": 233},
        "cityscapes": {"train": 2975, "val": 500, "test": 1525},
        "coco_stuff10k": {"train": 9000, "test": 1000},
        "coco_stuff164k": {"train": 118287, "val": 5000},
        "pascal_context": {"train": 4998, "val": 5105},
    }
