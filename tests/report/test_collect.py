"""What is kept of each image, and the page's data: against counts by hand; hostile names stay text."""

import csv
import io
import json

import numpy as np
import pytest
import synthetic_report as synthetic
from PIL import Image

from hfgd_jax.evaluation.boundaries import Details
from hfgd_jax.evaluation.metrics import image_matrix
from hfgd_jax.report import pictures, write
from hfgd_jax.report.collect import FOLDERS, PAIRS, Options, Seen, pairs_of

OPTIONS = Options(side=64, thumbnail=32)


def read(folder, name):
    text = (folder / "data" / f"{name}.js").read_text()
    assert text.startswith(f"REPORT.{name} = ") and text.endswith(";\n")
    return json.loads(text.removeprefix(f"REPORT.{name} = ").removesuffix(";\n"))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of ten scenes and two runs: its folder, the scenes, and the collector."""
    folder = tmp_path_factory.mktemp("report") / "out"
    scenes = [synthetic.scene(number, compare=True) for number in range(10)]
    return folder, scenes, synthetic.write_report(folder, scenes, OPTIONS, compare=True)


def by_hand(scenes, part):
    """Counts of each pair of classes over the labelled pixels, one pixel after the other."""
    matrix = np.zeros((6, 6), int)
    for seen in scenes:
        keep = seen.label != 255
        np.add.at(matrix, (seen.label[keep], getattr(seen, part)[keep]), 1)
    return matrix


def test_scores_are_those_of_the_pixels(report):
    folder, scenes, _ = report
    scores, matrix = read(folder, "scores"), by_hand(scenes, "mask")
    assert scores["matrix"] == matrix.tolist() and scores["images"] == 10
    right, labelled, predicted = np.diagonal(matrix), matrix.sum(1), matrix.sum(0)
    details = Details(6)
    for seen in scenes:
        details.add(seen.label, seen.mask)
    for k, row in enumerate(scores["classes"][:5]):
        assert row["iou"] == pytest.approx(right[k] / (labelled[k] + predicted[k] - right[k]))
        assert row["accuracy"] == pytest.approx(right[k] / labelled[k])
        assert row["precision"] == pytest.approx(right[k] / predicted[k])
        assert row["boundary"] == details.columns()["boundary_IoU"][k]
        assert row["small"] == details.columns()["small_object_recall"][k]
        assert (row["labelled"], row["predicted"]) == (labelled[k], predicted[k])
    other = by_hand(scenes, "compared")
    assert scores["classes"][1]["other"]["labelled"] == other.sum(1)[1]
    assert scores["runs"][1]["scores"]["pixel_accuracy"] == pytest.approx(np.trace(other) / other.sum())
    absent = scores["classes"][5]
    assert absent["iou"] is None and absent["labelled"] == 0
    wrong = matrix - np.diag(right)
    t, p, count = scores["largest"][0]
    assert count == wrong.max() == wrong[t, p] and scores["wrong_pixels"] == wrong.sum()


def test_images_have_their_own_scores_and_pairs(report):
    folder, scenes, _ = report
    for seen, kept in zip(scenes, read(folder, "images"), strict=True):
        matrix = by_hand([seen], "mask")
        assert kept["id"] == seen.id and kept["size"] == list(seen.label.shape)
        assert kept["accuracy"] == pytest.approx(np.trace(matrix) / matrix.sum(), abs=1e-4)
        assert all(matrix[t, p] == count for t, p, count in kept["pairs"])
        assert kept["classes"] == [
            [k, matrix[k].sum(), matrix[:, k].sum(), matrix[k, k]] for k in range(6) if kept_class(matrix, k)
        ]
        keep = seen.label != 255
        assert kept["differ"] == pytest.approx((seen.mask != seen.compared)[keep].mean(), abs=1e-4)
        assert bool(kept["regions"]) == (seen.id < "00001" or seen.id.startswith("00005"))


def kept_class(matrix, k):
    return bool(matrix[k].sum() + matrix[:, k].sum())


def test_every_image_has_its_pictures_and_no_file_a_records_name(report):
    folder, _, _ = report
    for name, suffix in FOLDERS.items():
        files = sorted(path.name for path in (folder / "pictures" / name).iterdir())
        assert files == sorted(f"{number}.{suffix}" for number in range(10))
        with Image.open(folder / "pictures" / name / files[0]) as picture:
            assert max(picture.size) == {"thumbnail": 32, "confidence": 32}.get(name, 64)
    assert (folder / "index.html").is_file()


def test_names_are_data_and_never_markup_or_formulas(report):
    folder, _, _ = report
    assert "<" not in (folder / "data" / "scores.js").read_text()
    assert "<" not in (folder / "data" / "images.js").read_text()
    assert read(folder, "scores")["classes"][0]["name"] == synthetic.HOSTILE[0]
    rows = list(csv.DictReader((folder / "label_regions.csv").open(newline="")))
    assert [float(row["score"]) for row in rows] == sorted(
        (float(row["score"]) for row in rows), reverse=True
    )
    assert {row["label"] for row in rows} <= {f"'{n}" if n[0] == "=" else n for n in synthetic.HOSTILE}
    assert rows and rows[0]["image"][:5] in ("00000", "00005")


def test_formulas_get_an_apostrophe():
    assert write.csv_text([["=1+1", "-2", -2, "a,b", "+x", "@y"]]) == "'=1+1,'-2,-2,\"a,b\",'+x,'@y\n"


def test_images_without_labels_are_kept_without_scores(tmp_path):
    label = np.full((20, 30), 255, np.uint8)
    flat = np.zeros(label.shape, np.float32)
    seen = Seen("void", np.zeros((20, 30, 3), np.uint8), label, np.zeros_like(label), flat + 1, flat)
    found = synthetic.write_report(tmp_path / "out", [seen], OPTIONS)
    (kept,) = read(tmp_path / "out", "images")
    assert kept["iou"] is None and kept["quality"] is None and kept["classes"] == kept["regions"] == []
    assert read(tmp_path / "out", "scores")["labelled_pixels"] == 0 and found.compared is None
    assert (tmp_path / "out" / "label_images.csv").read_text().count("\n") == 1


def test_only_the_largest_confusions_are_kept():
    matrix = np.arange(900).reshape(30, 30)
    kept = pairs_of(matrix, PAIRS)
    assert kept.shape == (PAIRS, 3) and kept[0].tolist() == [29, 28, 898]
    assert pairs_of(np.diag([3, 4]), PAIRS).shape == (0, 3)
    ones = np.ones((2, 3), np.uint8)
    assert image_matrix(ones, ones, 2).tolist() == [[0, 0], [0, 6]]


def test_pictures_show_what_they_should():
    label = np.array([[0, 1, 255], [1, 1, 1]], np.uint8)
    shown = opened(pictures.mask(label, [(9, 8, 7), (200, 100, 50)], 100))
    assert shown[0].tolist() == [[9, 8, 7, 255], [200, 100, 50, 255], [0, 0, 0, 0]]
    given = np.array([[0.9, 0.3, 0.3], [0.3, 0.01, 0.01]], np.float32)
    wrong = opened(pictures.mistakes(label, np.zeros_like(label), given, 0.01, 100))
    assert wrong[0, 0, 3] == 0  # right
    assert wrong[1, 0].tolist() != wrong[1, 1].tolist()  # in doubt, and sure
    assert wrong[0, 2].tolist() == [128, 128, 128, 255]  # ignored
    certain = opened(pictures.certainty(np.array([[0.0, 1.0]], np.float32), 100))
    assert certain[0, 0, 0] == 0 and certain[0, 1, 0] == 255
    assert pictures.reduced((1, 4000), 100) == (1, 100) and pictures.reduced((30, 20), 100) == (30, 20)


def opened(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))


def test_curves_are_thinned_and_without_what_is_not_finite():
    lines = [{"step": n, "loss": 1.0 / n} for n in range(1, 1001)] + [{"step": 1001, "loss": float("nan")}]
    curves = write.curves_of([*lines, {"step": 1001, "mIoU": 0.5}])
    assert len(curves["loss"]) <= write.POINTS and curves["loss"][0] == (1, 1.0)
    assert curves["mIoU"] == [(1001, 0.5)]
