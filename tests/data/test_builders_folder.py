"""`folder`: anybody's images and masks, of ids or colours, divided by lists, by folders or by a share."""

import numpy as np
import pytest
from PIL import Image

from hfgd_jax import config as configuration
from hfgd_jax.data import builders, pipeline, prepared
from hfgd_jax.data.builders import base, class_lists
from hfgd_jax.data.labels import voc_colours
from hfgd_jax.errors import UserError
from hfgd_jax.runs import system
from hfgd_jax.tools import check_dataset

COLOURS = np.array([[0, 0, 0], [128, 64, 0], [0, 64, 128], [255, 255, 255]], np.uint8)
NAMES = ("background", "leaf", "stem", "void")
CSV = "name, R, g, b\n" + "".join(f"{n},{r},{g},{b}\n" for n, (r, g, b) in zip(NAMES, COLOURS, strict=True))
LABELMAP = "# label:color_rgb:parts:actions\n" + "".join(
    f"{n}:{r},{g},{b}::\n" for n, (r, g, b) in zip(NAMES, COLOURS, strict=True)
)


def quiet(line):
    """A progress report that says nothing."""


def ids_of(i, count=4):
    height, width = 20 + i % 3, 30 - i % 4
    return ((np.indices((height, width)).sum(0) + i) % count).astype(np.uint8)


def write(folder, keys, save_mask, listing=("classes.txt", "background\nleaf\nstem\nvoid\n")):
    """Images and masks of these keys; `save_mask(ids, path)` writes what `ids_of` says."""
    for i, key in enumerate(keys):
        image, mask = folder / "images" / f"{key}.jpg", folder / "masks" / f"{key}.png"
        for path in (image, mask):
            path.parent.mkdir(parents=True, exist_ok=True)
        ids = ids_of(i)
        Image.fromarray(COLOURS[ids]).convert("L" if i == 0 else "RGB").save(image)
        save_mask(ids, mask)
    if listing:
        (folder / listing[0]).write_text(listing[1])
    return folder


def as_ids(ids, path):
    Image.fromarray(ids).save(path)


def as_palette(ids, path):
    image = Image.fromarray(ids, mode="P")
    image.putpalette(COLOURS.tobytes())
    image.save(path)


def as_shuffled_palette(ids, path):
    """The indices say nothing, the colours do."""
    image = Image.fromarray(ids ^ 1, mode="P")
    image.putpalette(COLOURS[[1, 0, 3, 2]].tobytes())
    image.save(path)


def as_wide_ids(ids, path):
    Image.fromarray(ids.astype(np.uint16)).save(path)


def as_colours(ids, path):
    Image.fromarray(COLOURS[ids]).save(path)


def as_transparent_colours(ids, path):
    Image.fromarray(np.concatenate([COLOURS[ids], ids[..., None] * 9], -1)).save(path)


KEYS = [f"{i:02d}" for i in range(10)]


@pytest.mark.parametrize(
    ("save", "listing"),
    [
        (as_ids, None),
        (as_palette, None),
        (as_wide_ids, None),
        (as_colours, ("classes.csv", CSV)),
        (as_transparent_colours, ("classes.csv", CSV)),
        (as_palette, ("labelmap.txt", LABELMAP)),
        (as_shuffled_palette, ("labelmap.txt", LABELMAP)),
    ],
)
def test_every_kind_of_mask_becomes_the_same_train_ids(save, listing, tmp_path):
    raw = write(tmp_path / "raw", KEYS, save, *([listing] if listing else []))
    reports = check_dataset.check("folder", raw=raw)
    assert [line for report in reports for _, line in report.problems] == []
    builders.prepare("folder", raw, tmp_path / "data", report=quiet)
    seen = {}
    for name in ("train", "val"):
        split = prepared.open_split(tmp_path / "data", "folder", name)
        assert split.table.classes == NAMES[:3]
        assert split.table.palette.tolist() == (COLOURS if listing else voc_colours(range(4)))[:3].tolist()
        for i in range(len(split)):
            seen[split.record_id(i)] = split.example(i)["label"]
    assert sorted(seen) == KEYS
    for i, key in enumerate(KEYS):
        np.testing.assert_array_equal(seen[key], np.where(ids_of(i) == 3, 255, ids_of(i)))


def test_a_folder_gives_batches_with_its_number_of_classes(tmp_path):
    raw = write(tmp_path / "raw", KEYS, as_ids)
    builders.prepare("folder", raw, tmp_path / "data", report=quiet)
    config = configuration.default()
    config.data.update({"dataset": "folder", "data_dir": str(tmp_path / "data"), "crop": (33, 33)})
    with pytest.raises(
        UserError, match=r"num_classes=9: .*'folder' has 3 classes \(background, leaf, stem\)"
    ):
        system.open_data(config, "train")
    config.data.num_classes = 3
    split = system.open_data(config, "train")
    with pipeline.train_batches(split, config.data, batch_size=3, seed=0, mean_pixel=(0, 0, 0)) as batches:
        batch = next(batches)
    assert batch["image"].shape == (3, 33, 33, 3) and set(np.unique(batch["label"])) == {0, 1, 2, 255}


def keys_of(raw, options=base.DEFAULTS):
    found = builders.BUILDERS["folder"].splits(raw, options)
    return {name: [record.id for record in split.records] for name, split in found.items()}


@pytest.mark.parametrize("ending", ["_mask", "-labels", ".png", "a"])
def test_masks_may_have_a_common_ending(ending, tmp_path):
    keys = ["1", "12", "1a", "sub/ä 2"]
    write(tmp_path, keys, lambda ids, path: as_ids(ids, path.with_name(f"{path.stem}{ending}.png")))
    splits = builders.raw_splits("folder", tmp_path)
    found = {record.id: record for split in splits.values() for record in split.records}
    if ending == "a":  # 1a.png is the mask of 1a.jpg, or of 1.jpg: names count as they are
        assert found["12"].label is None and found["1a"].label is not None
        return
    assert set(found) == set(keys)
    assert all(record.label.stem == record.image.stem + ending for record in found.values())


def test_different_endings_are_unmatched_files(tmp_path):
    ends = iter(("_mask", "_mask", "_gt"))
    write(tmp_path, "abc", lambda ids, path: as_ids(ids, path.with_name(f"{path.stem}{next(ends)}.png")))
    with pytest.raises(UserError, match=r"a\.jpg: image without a label"):
        builders.prepare("folder", tmp_path, tmp_path / "data", report=quiet)


def test_a_share_is_drawn_with_a_seed_and_stays_when_files_are_added(tmp_path):
    raw = write(tmp_path / "raw", [f"site{i % 3}/plot.{i:03d}" for i in range(60)], as_ids)
    first = keys_of(raw, base.Options(0.25, 1))
    assert len(first["val"]) == 15 and len(first["train"]) == 45
    assert not set(first["train"]) & set(first["val"])
    assert first == keys_of(raw, base.Options(0.25, 1))
    assert first["val"] != keys_of(raw, base.Options(0.25, 2))["val"]
    write(raw, ["site3/new0", "site3/new1"], as_ids, None)
    after = keys_of(raw, base.Options(0.25, 1))
    assert len(set(after["val"]) - set(first["val"])) <= 2


def test_each_drawn_split_has_at_least_one_image(tmp_path):
    raw = write(tmp_path / "raw", ["a", "b"], as_ids)
    for ratio in (0.01, 0.99):
        assert [len(keys) for keys in keys_of(raw, base.Options(ratio)).values()] == [1, 1]
    (raw / "images" / "b.jpg").unlink()
    (raw / "masks" / "b.png").unlink()
    with pytest.raises(UserError, match="1 image; want two"):
        keys_of(raw)


def test_splits_are_read_from_lists(tmp_path):
    raw = write(tmp_path / "raw", ["a", "sub/b", "sub/c.d", "e", "left.out"], as_ids)
    (raw / "masks" / "e.png").unlink()
    (raw / "train.txt").write_text("sub/b.jpg\na\n")
    (raw / "val.txt").write_text("images/sub/c.d\n")
    (raw / "test.txt").write_text("e.jpg\n")
    assert keys_of(raw) == {"train": ["sub/b", "a"], "val": ["sub/c.d"], "test": ["e"]}
    builders.prepare("folder", raw, tmp_path / "data", report=quiet)
    assert not prepared.open_split(tmp_path / "data", "folder", "test").labelled
    for name, text, message in (
        ("val", "nowhere\n", "val.txt: neither image nor mask of: nowhere"),
        ("val", "sub/b\n", "val.txt: also in train.txt: sub/b"),
        ("val", "", "val.txt: no names"),
    ):
        (raw / f"{name}.txt").write_text(text)
        with pytest.raises(UserError, match=message):
            keys_of(raw)
    (raw / "val.txt").unlink()
    with pytest.raises(UserError, match=r"only train.txt, test.txt; want train.txt and val.txt, or none"):
        keys_of(raw)


def test_splits_are_read_from_folders(tmp_path):
    raw = write(tmp_path / "raw", ["train/a", "train/x/b", "val/a", "test/z"], as_ids)
    assert keys_of(raw) == {"train": ["train/a", "train/x/b"], "val": ["val/a"], "test": ["test/z"]}
    write(raw, ["other/a"], as_ids, None)
    assert set(keys_of(raw)) == {"train", "val"}


def colour_nobody_knows(raw):
    image = np.asarray(Image.open(raw / "masks" / "03.png")).copy()
    image[0, :3] = 7, 8, 9
    Image.fromarray(image).save(raw / "masks" / "03.png")
    return (
        r"masks/03.png: not in classes.csv: colour \(7, 8, 9\) \(0.6% of the mask\); a line 'void,7,8,9' in"
    )


def wide_colours(raw):
    Image.fromarray(ids_of(3).astype(np.uint16)).save(raw / "masks" / "03.png")
    return r"masks/03.png: mask cannot be read \(mode I;16; want 8 bits a channel\)"


def cut_mask(raw):
    path = raw / "masks" / "03.png"
    path.write_bytes(path.read_bytes()[:50])
    return "masks/03.png: mask cannot be read"


def two_masks(raw):
    (raw / "masks" / "03.bmp").write_bytes(b"")
    return "masks/03.png: 03.bmp has the same name"


def no_mask(raw):
    (raw / "masks" / "03.png").unlink()
    return "images/03.jpg: image without a label"


def masks_are_jpegs(raw):
    for path in (raw / "masks").iterdir():
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    return "masks/00.jpg: a JPEG in the folder of the labels"


def no_images(raw):
    for path in (raw / "images").iterdir():
        path.unlink()
    return "images: no images"


def no_masks_folder(raw):
    (raw / "masks").rename(raw / "labels")
    return "masks: no such folder; want SOURCE/"


@pytest.mark.parametrize(
    "spoil",
    [
        colour_nobody_knows,
        wide_colours,
        cut_mask,
        two_masks,
        no_mask,
        masks_are_jpegs,
        no_images,
        no_masks_folder,
    ],
)
def test_faults_of_a_folder_are_named(spoil, tmp_path):
    raw = write(tmp_path / "raw", KEYS, as_colours, ("classes.csv", CSV))
    message = spoil(raw)
    with pytest.raises(UserError, match=message):
        builders.prepare("folder", raw, tmp_path / "data", report=quiet)
    assert not list((tmp_path / "data").glob("*"))


def test_coloured_masks_without_a_colour_list_are_an_error(tmp_path):
    raw = write(tmp_path / "raw", KEYS, as_colours)
    with pytest.raises(UserError, match=r"00.png: label has mode RGB.* or classes.csv with the colours"):
        builders.prepare("folder", raw, tmp_path / "data", report=quiet)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no list of classes; want classes.txt .*or classes.csv or labelmap.txt"),
        ({"classes.txt": "a\nb", "classes.csv": CSV}, "both classes.txt and classes.csv"),
        ({"classes.txt": "a\nb\na"}, "classes.txt: more than once in this list: a"),
        ({"classes.txt": "void\n"}, "classes.txt: 0 classes; want 1 to 254"),
        ({"classes.txt": "\n".join(map(str, range(255)))}, "classes.txt: 255 classes; want 1 to 254"),
        ({"classes.csv": ""}, "classes.csv: the first line is ''; want a header with name,r,g,b"),
        ({"classes.csv": "a,0,0,0\n"}, "first line is 'a,0,0,0'; want a header"),
        ({"classes.csv": "name,r,g,b\na,0,0\n"}, "'a,0,0': want a name and its colour"),
        ({"classes.csv": "name,r,g,b\na,0,0,256\n"}, "'a,0,0,256': want a name and its colour"),
        ({"classes.csv": "name,r,g,b\na,0,0,1\na,0,0,2\n"}, "'a' more than once"),
        ({"classes.csv": "name,r,g,b\na,0,0,1\nb,0,0,1\n"}, "the colour of 'b' is another class's, too"),
        ({"labelmap.txt": "# nothing\n"}, "labelmap.txt: 0 classes"),
        ({"labelmap.txt": "a\n"}, "'a': want a name and its colour"),
        ({"labelmap.txt": "a:red::\n"}, "'a:red::': want a name and its colour"),
    ],
)
def test_bad_lists_of_classes_are_user_errors(files, message, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        class_lists.read(tmp_path)


@pytest.mark.parametrize("name", ["classes.txt", "classes.csv", "labelmap.txt"])
def test_a_list_in_another_encoding_names_the_way_out(name, tmp_path):
    (tmp_path / name).write_bytes("name,r,g,b\nfenêtre,1,2,3\n".encode("latin-1"))
    with pytest.raises(
        UserError, match=rf"{name}: .*not in UTF-8 \(byte 0xea in line 2\); .*iconv -f latin1"
    ):
        class_lists.read(tmp_path)


def test_blanks_and_a_byte_order_mark_in_lists_of_classes_are_skipped(tmp_path):
    (tmp_path / "classes.csv").write_text('\ufeffid,Name,r,g,b\n\n1,"cat, small",1,2,3\n2,Ignore,4,5,6\n')
    found = class_lists.read(tmp_path)
    assert found.table.classes == ("cat, small",) and found.table.raw_ids == {0: 0, 1: 255}
    Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)).save(tmp_path / "m.png")
    assert found.read_label(tmp_path / "m.png").tolist() == [[0, 1]]


def test_255_is_ignored_in_masks_of_ids(tmp_path):
    (tmp_path / "classes.txt").write_text("a\n\nb\n")
    table = class_lists.read(tmp_path).table
    assert table.raw_ids == {0: 0, 1: 1, 255: 255}
    with pytest.raises(UserError, match="label value 2 is not in the label table"):
        table.to_train_ids(np.array([[0, 2]], np.uint8))
