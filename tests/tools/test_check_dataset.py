"""The check finds every fault that is put in, and names the file."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from hfgd_jax.data import builders
from hfgd_jax.data.labels import TABLES
from hfgd_jax.errors import UserError
from hfgd_jax.tools import check_dataset


def problems(reports):
    return [line for report in reports for _, line in report.problems]


def label_of(raw, split, number):
    return sorted((raw / split / "labels").glob("*.png"))[number]


def image_of(raw, split, number):
    return sorted((raw / split / "images").glob("seq*"))[number]


def test_a_good_folder_has_no_problems_and_right_counts(camvid_raw):
    train, val = check_dataset.check("camvid", raw=camvid_raw)
    assert problems([train, val]) == []
    assert (train.images, val.images) == (6, 5)
    counts = np.zeros(256, int)
    for path in (camvid_raw / "val" / "labels").glob("*.png"):
        counts += np.bincount(np.asarray(Image.open(path)).ravel(), minlength=256)
    assert dict(val.values) == {value: n for value, n in enumerate(counts) if n}
    assert val.images_with[0] == 5
    text = "\n".join(val.lines())
    assert "camvid val: 5 images, 64x48, 53x37, 41x80" in text
    assert f"0  sky                        5 {counts[0]:>12} {counts[0] / counts.sum():>7.2%}" in text
    assert "11  (ignored)" in text


def test_prepared_sets_are_checked_in_train_ids(camvid_dir, shapes_dir):
    reports = check_dataset.check("camvid", data_dir=camvid_dir)
    assert problems(reports) == []
    assert set(reports[0].values) == {*range(11), 255}
    assert problems(check_dataset.check("shapes", data_dir=shapes_dir)) == []


def fault_value(raw):
    path = label_of(raw, "train", 2)
    label = np.asarray(Image.open(path)).copy()
    label[0, 0] = 77
    Image.fromarray(label).save(path)
    return f"{path}: label value 77 is not in the label table"


def fault_zero_and_255(raw):
    path = label_of(raw, "train", 2)
    Image.fromarray(np.asarray(Image.open(path)) // 6 * 255).save(path)
    return f"{path}: label value 255 is not in the label table"


def fault_ignored(raw):
    path = label_of(raw, "val", 2)
    Image.new("L", (64, 48), 11).save(path)
    return f"{path}: every pixel is ignored"


def fault_size(raw):
    path = label_of(raw, "val", 2)
    Image.fromarray(np.asarray(Image.open(path)).T.copy()).save(path)
    return f"{path}: label is 48x64, but its image is 64x48"


def fault_truncated_image(raw):
    path = image_of(raw, "train", 0)
    path.write_bytes(path.read_bytes()[:300])
    return f"{path}: image cannot be decoded"


def fault_truncated_label(raw):
    path = label_of(raw, "train", 0)
    path.write_bytes(path.read_bytes()[:60])
    return f"{path}: label cannot be read"


def fault_no_label(raw):
    label_of(raw, "train", 3).unlink()
    return f"{image_of(raw, 'train', 3)}: image without a label"


def fault_no_image(raw):
    image_of(raw, "train", 3).unlink()
    return f"{label_of(raw, 'train', 3)}: label without an image"


def fault_colours(raw):
    path = label_of(raw, "train", 3)
    Image.open(path).convert("RGB").save(path)
    return f"{path}: label has mode RGB"


def fault_empty_file(raw):
    path = label_of(raw, "train", 3)
    path.write_bytes(b"")
    return f"{path}: label cannot be read"


def fault_large_value(raw):
    path = label_of(raw, "val", 1)
    label = np.asarray(Image.open(path)).copy()
    label[5, 5] = 200
    Image.fromarray(label).save(path)
    return f"{path}: label value 200 is not in the label table"


def fault_class_never_seen(raw):
    for path in (raw / "train" / "labels").glob("*.png"):
        label = np.asarray(Image.open(path)).copy()
        label[label == 9] = 11
        Image.fromarray(label).save(path)
    return "class 'pedestrian' (raw id 9) is never seen in train"


FAULTS = [value for name, value in sorted(globals().items()) if name.startswith("fault_")]


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_and_named(fault, camvid_raw):
    message = fault(camvid_raw)
    found = problems(check_dataset.check("camvid", raw=camvid_raw))
    assert len(found) == 1, found
    assert found[0].startswith(message), found


def test_all_faults_are_found_at_once(camvid_raw):
    messages = [
        fault(camvid_raw) for fault in (fault_value, fault_size, fault_truncated_image, fault_no_label)
    ]
    found = problems(check_dataset.check("camvid", raw=camvid_raw))
    assert len(found) == 4
    for message in messages:
        assert any(line.startswith(message) for line in found)


def test_a_class_missing_in_validation_alone_is_a_note(camvid_raw):
    for path in (camvid_raw / "val" / "labels").glob("*.png"):
        label = np.asarray(Image.open(path)).copy()
        label[label == 9] = 11
        Image.fromarray(label).save(path)
    train, val = check_dataset.check("camvid", raw=camvid_raw)
    assert problems([train, val]) == []
    assert val.notes == [
        "class 'pedestrian' (raw id 9) is never seen in val",
        "val has 5 images: their mIoU says little",
        "val has 5 records, its owners count 101",
    ]


def hints(reports):
    usual = ("owners count", "says little")  # of a miniature
    return [note for report in reports for note in report.notes if not any(x in note for x in usual)]


def rewrite(raw, change):
    """Puts `change(label)` in the place of every label."""
    for path in raw.glob("*/labels/*.png"):
        Image.fromarray(change(np.asarray(Image.open(path)))).save(path)


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (
            lambda label: ((label > 5) * 255).astype(np.uint8),
            "the values are 0 and 255, as in black and white",
        ),
        (lambda label: label + np.uint8(1), "the values look shifted by one: 1-12 in place of 0-11"),
        (
            lambda label: np.asarray(
                Image.fromarray(TABLES["camvid"].palette[label.clip(max=10)]).convert("L")
            ),
            "the values are the greys of a palette's colours",
        ),
        (
            lambda label: np.where(label == 3, 12, label).astype(np.uint8),
            "there is one value more than the table has, 12",
        ),
        (
            lambda label: TABLES["camvid"].palette[label.clip(max=10)],
            "{} labels hold colours; they must hold ids",
        ),
    ],
)
def test_common_label_mistakes_get_a_hint(change, hint, camvid_raw):
    rewrite(camvid_raw, change)
    reports = check_dataset.check("camvid", raw=camvid_raw)
    found = hints(reports)
    for report, count in zip(reports, (6, 5), strict=True):
        assert report.problems
        assert len([line for line in report.notes if line.startswith(hint.format(count))]) == 1, found
        assert any(line.startswith("  note: " + hint.format(count)) for line in report.lines())


def folder(raw, masks, listing):
    """A folder of images of noise with these masks, by name, and a list of classes."""
    for part in ("images", "masks"):
        (raw / part).mkdir(parents=True)
    for name, mask in masks.items():
        Image.new("RGB", mask.shape[1::-1], (9, 9, 9)).save(raw / "images" / f"{name}.jpg")
        Image.fromarray(mask.astype(np.uint8)).save(raw / "masks" / f"{name}.png")
    (raw / listing[0]).write_text(listing[1])
    return check_dataset.check("folder", raw=raw)


def test_ids_that_start_at_one_under_too_few_names_get_a_hint(tmp_path):
    masks = {str(i): np.indices((9, 12)).sum(0) % 3 + 1 for i in range(4)}
    reports = folder(tmp_path / "raw", masks, ("classes.txt", "a\nb\n"))
    assert all(
        any(n.startswith("the values are 1-3, and the list's ids are 0-1") for n in r.notes) for r in reports
    )


def test_a_single_class_gets_a_note(tmp_path):
    reports = folder(tmp_path / "raw", {str(i): np.zeros((9, 12)) for i in range(4)}, ("classes.txt", "a\n"))
    assert all(any(n.startswith("there is one class") for n in report.notes) for report in reports)


def test_masks_that_cannot_be_used_make_no_class_unseen(tmp_path):
    """A colour that the list lacks is the one problem, though no class was seen."""
    masks = {str(i): np.full((9, 12, 3), 7) for i in range(4)}
    reports = folder(tmp_path / "raw", masks, ("classes.csv", "name,r,g,b\na,1,2,3\nb,0,0,0\n"))
    assert all(
        "never seen" not in line and "'void,7,7,7' in the list ignores" in line for line in problems(reports)
    )
    assert all(any("never seen are not told" in n for n in report.notes) for report in reports)


def test_black_and_white_masks_of_a_folder_are_noticed_when_prepared(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / "raw" / part).mkdir(parents=True)
    for i in range(4):
        Image.new("RGB", (20, 10), (i, 9, 9)).save(tmp_path / "raw" / "images" / f"{i}.jpg")
        mask = ((np.indices((10, 20)).sum(0) + i) % 2 * 255).astype(np.uint8)
        Image.fromarray(mask).save(tmp_path / "raw" / "masks" / f"{i}.png")
    (tmp_path / "raw" / "classes.txt").write_text("background\nobject\n")
    builders.prepare("folder", tmp_path / "raw", tmp_path / "data", report=lambda line: None)
    for ids, reports in (
        ("raw id", check_dataset.check("folder", raw=tmp_path / "raw")),
        ("train id", check_dataset.check("folder", data_dir=tmp_path / "data")),
    ):
        assert problems(reports) == [f"class 'object' ({ids} 1) is never seen in train"]
        assert f"  {ids:>8}  class" in "\n".join(reports[0].lines())
        assert [note for note in hints(reports) if note.startswith("the values are 0 and 255")]


def test_good_labels_get_no_hints(camvid_raw, camvid_dir):
    assert hints(check_dataset.check("camvid", raw=camvid_raw)) == []
    assert hints(check_dataset.check("camvid", data_dir=camvid_dir)) == []


def swap(raw):
    for split in ("train", "val"):
        (raw / split / "images").rename(raw / "aside")
        (raw / split / "labels").rename(raw / split / "images")
        (raw / "aside").rename(raw / split / "labels")


def test_swapped_folders_with_jpegs_are_a_problem(camvid_raw):
    swap(camvid_raw)
    (camvid_raw / "train" / "labels" / "seq03_f00090.png").unlink()
    with pytest.raises(UserError, match=r"train/labels/seq00_f00000.jpg: a JPEG in the folder of the labels"):
        check_dataset.check("camvid", raw=camvid_raw)


def test_swapped_folders_with_pngs_alone_are_a_problem(camvid_raw):
    for path in camvid_raw.glob("*/images/*.jpg"):
        Image.open(path).convert("RGB").save(path.with_suffix(".png"))
        path.unlink()
    swap(camvid_raw)
    reports = check_dataset.check("camvid", raw=camvid_raw)
    for report, name in zip(reports, ("train", "val"), strict=True):
        (line,) = [line for kind, line in report.problems if kind == "swapped folders"]
        assert line.startswith(f"{camvid_raw / name / 'images' / 'seq00_f00000.png'}: holds ids")


def test_unlabelled_splits_are_no_problem(camvid_raw):
    (camvid_raw / "test" / "images").mkdir(parents=True)
    Image.new("RGB", (20, 10)).save(camvid_raw / "test" / "images" / "x.png")
    reports = check_dataset.check("camvid", raw=camvid_raw)
    assert [r.name for r in reports] == ["train", "val", "test"] and problems(reports) == []


def test_corrupt_prepared_records_are_named(spoilt_dir):
    found = problems(check_dataset.check("camvid", data_dir=spoilt_dir))
    assert len(found) == 2
    assert "record 2 (id 'seq02_f00060')" in found[0] and "record 3 (id 'seq03_f00090')" in found[1]


def test_long_lists_are_cut():
    report = check_dataset.SplitReport("train", TABLES["camvid"])
    for i in range(check_dataset.MAX_LINES + 5):
        report.add("unreadable images", f"file {i}")
    lines = [line for line in report.lines() if "PROBLEM" in line]
    assert len(lines) == check_dataset.MAX_LINES + 1
    assert lines[-1] == "  PROBLEM ... and 5 more: unreadable images"
    report.notes += [f"note {i}" for i in range(check_dataset.MAX_LINES + 2)]
    assert [*report.lines()][-1] == "  note: ... and 2 more"


def test_unusable_places_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        check_dataset.check("camvid", raw=tmp_path / "nowhere")
    with pytest.raises(UserError, match="train/images: no such folder"):
        check_dataset.check("camvid", raw=tmp_path)
    with pytest.raises(UserError, match="not prepared"):
        check_dataset.check("camvid", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("fault", "where", "code", "last"),
    [
        (None, None, 0, "no problems found"),
        (fault_value, None, 1, "1 problem found"),
        (None, "nowhere", 2, None),
    ],
)
def test_exit_code_is_1_with_problems_and_2_for_bad_arguments(fault, where, code, last, camvid_raw):
    if fault:
        fault(camvid_raw)
    command = [sys.executable, "-m", "hfgd_jax.tools.check_dataset", "--dataset=camvid"]
    command.append(f"--source={where or camvid_raw}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    if last:
        assert done.stdout.splitlines()[-1] == last and done.stderr == ""
    else:
        assert done.stderr.startswith("error: nowhere: no such folder") and done.stderr.count("\n") == 1
