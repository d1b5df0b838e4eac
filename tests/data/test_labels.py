"""Label tables."""

import numpy as np
import pytest

from hfgd_jax.data import builders
from hfgd_jax.data.labels import IGNORE, TABLES, LabelTable, voc_colours
from hfgd_jax.errors import UserError


def table(**fields):
    values = {
        "name": "toy",
        "classes": ("a", "b"),
        "palette": np.array([[1, 2, 3], [4, 5, 6]], np.uint8),
        "raw_ids": {7: 0, 300: 1, 0: IGNORE},
    }
    return LabelTable(**(values | fields))


def test_camvid_is_the_eleven_classes_with_void_ignored():
    camvid = TABLES["camvid"]
    names = "sky building pole road pavement tree sign fence car pedestrian bicyclist"
    assert camvid.classes == tuple(names.split())
    assert camvid.raw_ids == {i: i for i in range(11)} | {11: IGNORE}
    assert camvid.palette.shape == (11, 3) and camvid.palette.dtype == np.uint8


def test_every_data_set_has_a_table_with_different_colours():
    assert set(TABLES) == set(builders.BUILDERS) - {"folder"}  # whose classes its own folder says
    for each in TABLES.values():
        shared = each.name == "ade20k"  # its owners gave road and skyscraper the same
        assert len(np.unique(each.palette, axis=0)) == each.num_classes - shared
    assert TABLES["shapes"].num_classes == 9


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_raw_ids_become_train_ids(dtype):
    got = table(raw_ids={7: 0, 200: 1, 0: IGNORE}).to_train_ids(np.array([[7, 200], [0, 7]], dtype))
    np.testing.assert_array_equal(got, [[0, 1], [255, 0]])
    assert got.dtype == np.uint8


@pytest.mark.parametrize(
    ("raw", "named"),
    [([[7, 8]], "8"), ([[255]], "255"), ([[-1, 7]], "-1"), ([[301, 65535]], "301, 65535")],
)
def test_unknown_values_are_named(raw, named):
    raw = np.array(raw, np.int32)
    with pytest.raises(UserError, match=rf"label value {named} .*'toy' \(known: 0, 7, 300\)"):
        table().to_train_ids(raw)
    assert table().unknown_ids(raw) == [int(v) for v in named.split(", ")]


def test_many_unknown_values_fit_one_line():
    with pytest.raises(UserError, match=r"label value 1, 2, 3, 4, 5, 6, 8, 9 \.\.\. is not"):
        table().to_train_ids(np.arange(100, dtype=np.uint8)[None])


@pytest.mark.parametrize("each", [table(), *TABLES.values()], ids=lambda t: t.name)
def test_a_table_survives_json(each):
    back = LabelTable.from_json(each.to_json())
    assert back == each and hash(back) == hash(each)
    assert back.palette.dtype == np.uint8 and back.raw_ids == each.raw_ids
    assert back != table(classes=("a", "c"))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"name": "x", "classes": ["a"], "palette": [], "raw_ids": {}}', "null"]
)
def test_bad_json_is_a_user_error(text):
    with pytest.raises(UserError, match="label table"):
        LabelTable.from_json(text)


@pytest.mark.parametrize(
    "fields",
    [
        {"classes": ("a",)},
        {"classes": ("a", "a")},
        {"classes": ()},
        {"raw_ids": {0: 2}},
        {"raw_ids": {-1: 0}},
        {"raw_ids": {0: 254}},
    ],
)
def test_inconsistent_tables_are_refused(fields):
    with pytest.raises(UserError, match="label table 'toy'"):
        table(**fields)


def test_train_ids_go_back_to_raw_ids():
    train = np.array([[0, 1], [255, 0]], np.uint8)
    back = table(raw_ids={7: 0, 8: 0, 200: 1, 0: IGNORE, 9: IGNORE}).to_raw_ids(train)
    assert back.tolist() == [[7, 200], [0, 7]] and back.dtype == np.uint8  # the smallest of several
    wide = table().to_raw_ids(train)
    assert wide.tolist() == [[7, 300], [0, 7]] and wide.dtype == np.uint16
    with pytest.raises(UserError, match="train id 255: data set 'toy' has no raw id for it"):
        table(raw_ids={7: 0, 300: 1}).to_raw_ids(train)
    with pytest.raises(UserError, match="train id 2:"):
        table().to_raw_ids(np.array([[2]], np.uint8))


@pytest.mark.parametrize("each", TABLES.values(), ids=lambda t: t.name)
def test_raw_ids_of_the_classes_survive_both_ways(each):
    raw = np.array([[r for r, train in each.raw_ids.items() if train != IGNORE]])
    np.testing.assert_array_equal(each.to_raw_ids(each.to_train_ids(raw)), raw)


@pytest.mark.parametrize(
    ("name", "count", "some"),
    [
        ("ade20k", 150, {1: "wall", 13: "person", 59: "screen door", 131: "screen", 150: "flag"}),
        ("cityscapes", 19, {7: "road", 19: "traffic light", 24: "person", 33: "bicycle"}),
        ("coco_stuff10k", 171, {1: "person", 13: "stop sign", 90: "toothbrush", 92: "banner", 182: "wood"}),
        ("coco_stuff164k", 171, {0: "person", 12: "stop sign", 89: "toothbrush", 91: "banner", 181: "wood"}),
        ("pascal_context", 59, {1: "aeroplane", 11: "table", 20: "tvmonitor", 21: "bag", 59: "wood"}),
    ],
)
def test_the_owners_ids_have_the_owners_names(name, count, some):
    found = TABLES[name]
    assert found.num_classes == count
    assert {raw: found.classes[found.raw_ids[raw]] for raw in some} == some


def test_what_the_owners_ignore_is_ignored():
    def ignored(name):
        return [raw for raw, train in TABLES[name].raw_ids.items() if train == IGNORE]

    assert [ignored(name) for name in ("ade20k", "coco_stuff10k", "pascal_context")] == [[0], [0], [0]]
    assert ignored("coco_stuff164k") == [255]
    assert ignored("cityscapes") == [0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30]
    gaps = set(range(1, 183)) - set(TABLES["coco_stuff10k"].raw_ids)
    assert gaps == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}


def test_colours_of_pascal_voc():
    # the first ones as VOC's own files have them
    expected = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128)]
    assert [tuple(c) for c in voc_colours(range(7)).tolist()] == expected
    assert voc_colours([20, 255]).tolist() == [[0, 64, 128], [224, 224, 192]]
    assert len(np.unique(voc_colours(range(256)), axis=0)) == 256
