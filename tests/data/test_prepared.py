"""Reading prepared data sets: names for what is wrong."""

import pickle

import numpy as np
import pytest

from hfgd_jax.data import prepared
from hfgd_jax.data.labels import TABLES
from hfgd_jax.errors import UserError


def test_a_split_has_length_ids_sizes_and_examples(shapes_dir):
    split = prepared.open_split(shapes_dir, "shapes", "val")
    assert len(split) == 8
    assert (split.dataset, split.split, split.labelled) == ("shapes", "val", True)
    assert split.table == TABLES["shapes"]
    assert split.record_id(3) == "val_0003"
    example = split.example(3)
    assert example["image"].dtype == example["label"].dtype == np.uint8
    assert split.size(3) == example["label"].shape == (160, 192)
    with pytest.raises(IndexError):
        split.example(8)


def test_the_table_is_the_one_saved_with_the_data(shapes_dir, monkeypatch):
    monkeypatch.setitem(TABLES, "shapes", TABLES["camvid"])
    assert prepared.open_split(shapes_dir, "shapes", "val").table.classes[0] == "sky"
    assert prepared.open_split(shapes_dir, "shapes", "val").table.num_classes == 9


def test_a_split_can_be_pickled(shapes_dir):
    split = prepared.open_split(shapes_dir, "shapes", "val")
    before = split.example(2)
    split.size(0)
    data = pickle.dumps(split)
    assert len(data) < 20_000
    after = pickle.loads(data).example(2)
    np.testing.assert_array_equal(before["image"], after["image"])


@pytest.mark.parametrize(
    ("dataset", "split", "message"),
    [
        ("cmavid", "train", "data set 'cmavid': unknown; one of ade20k, camvid, "),
        ("shapes", "test", "data set 'shapes' has no split 'test'; one of train, val"),
        (
            "camvid",
            "train",
            r"not prepared in .*; run: python -m hfgd_jax.tools.prepare --dataset camvid .* RAW",
        ),
    ],
)
def test_missing_data_sets_and_splits_are_named(shapes_dir, dataset, split, message):
    with pytest.raises(UserError, match=message):
        prepared.open_split(shapes_dir, dataset, split)


def test_another_version_asks_for_preparing_again(tmp_path):
    (tmp_path / "shapes" / "0.9.0").mkdir(parents=True)
    with pytest.raises(
        UserError, match=r"not in version 1.0.0 in .*prepare --dataset shapes .* --overwrite$"
    ):
        prepared.open_split(tmp_path, "shapes", "train")


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json", "metadata.json"])
def test_damaged_metadata_is_named(spoilt_dir, file):
    (spoilt_dir / "camvid" / "1.0.0" / file).write_text("{")
    with pytest.raises(UserError, match=r"camvid.1\.0\.0.* --overwrite$"):
        prepared.open_split(spoilt_dir, "camvid", "train").example(0)


def test_an_undecodable_image_is_named(spoilt_dir):
    split = prepared.open_split(spoilt_dir, "camvid", "train")
    with pytest.raises(prepared.CorruptRecordError) as caught:
        split.example(2)
    for part in ("'camvid'", "'train'", "record 2", "seq02_f00060", "image cannot be decoded"):
        assert part in str(caught.value)
    assert split.example(1)["id"] == "seq01_f00030"
    copy = pickle.loads(pickle.dumps(caught.value))  # workers send it home
    assert isinstance(copy, prepared.CorruptRecordError) and str(copy) == str(caught.value)


def test_a_header_that_cannot_be_read_is_named(spoilt_dir):
    split = prepared.open_split(spoilt_dir, "camvid", "train")
    assert split.size(2) == (48, 64)  # its header is whole
    with pytest.raises(prepared.CorruptRecordError, match=r"record 3 .*no readable header"):
        split.size(3)


def test_flipped_bytes_on_disk_are_named(spoilt_dir):
    file = next((spoilt_dir / "camvid" / "1.0.0").glob("camvid-val*"))
    data = bytearray(file.read_bytes())
    for at in range(10_000, 10_040):  # within a record: the file's first block is filled to 25 KiB
        data[at] ^= 0xFF
    file.write_bytes(data)
    split = prepared.open_split(spoilt_dir, "camvid", "val")
    bad = []
    for i in range(len(split)):
        try:
            split.example(i)
        except prepared.CorruptRecordError as error:
            bad.append(str(error))
    assert 1 <= len(bad) < len(split) and all("split 'val', record" in line for line in bad)


def test_a_truncated_file_is_named(spoilt_dir):
    file = next((spoilt_dir / "camvid" / "1.0.0").glob("camvid-val*"))
    file.write_bytes(file.read_bytes()[:-100])
    split = prepared.open_split(spoilt_dir, "camvid", "val")
    with pytest.raises(prepared.CorruptRecordError, match="split 'val', record 0"):
        split.example(0)


def test_a_missing_file_is_named(spoilt_dir):
    next((spoilt_dir / "camvid" / "1.0.0").glob("camvid-val*")).unlink()
    with pytest.raises(prepared.CorruptRecordError, match="split 'val', record 0"):
        prepared.open_split(spoilt_dir, "camvid", "val").example(0)
