"""Writes a report's page and data: HTML, CSS and JavaScript of the package, scores as JavaScript, CSV tables.

Data lies in `.js` files, for a page that was opened from a file cannot read others. Names of classes, records
and runs go into JSON, and the page shows them as text; no file is called after them.
"""

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from hfgd_jax.evaluation import metrics
from hfgd_jax.report.collect import Collector, Counted, Kept, pairs_of

LARGEST = 200  # confusions listed
POINTS = 400  # of a curve
REGIONS, IMAGES = "label_regions.csv", "label_images.csv"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet computes


@dataclasses.dataclass(frozen=True)
class Run:
    """What the page says of a run besides its scores.

    Attributes:
        name: what it is called.
        step: of the checkpoint.
        settings: of the evaluation.
        fields: of the config, those that are not the defaults, by dotted name.
        curves: `loss` and `mIoU`, step and value each.
    """

    name: str
    step: int
    settings: Mapping[str, Any]
    fields: Mapping[str, Any]
    curves: Mapping[str, Sequence[tuple[int, float]]]


def curves_of(lines: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """The curves of `metrics.jsonl`'s records, thinned to at most `POINTS` points each."""
    found = {"loss": [], "mIoU": []}
    for line in lines:
        for key, points in found.items():
            if isinstance(value := line.get(key), int | float) and np.isfinite(value):
                points.append((line["step"], float(value)))
    return {key: points[:: -(-len(points) // POINTS) or 1] for key, points in found.items()}


def write(
    folder: Path,
    collected: Collector,
    runs: Sequence[Run],
    *,
    dataset: str,
    split: str,
    versions: Mapping[str, Any],
) -> None:
    """Writes everything but the pictures, which `collected` has written to the same folder.

    Args:
        folder: of the report.
        collected: all images.
        runs: one, or two where the collector compares.
        dataset, split: where the images are from.
        versions: of the packages and the machine.
    """
    for name, content in page_files().items():
        (folder / name).write_bytes(content)
    (folder / "data").mkdir(exist_ok=True)
    scores = scores_of_report(collected, runs) | {"dataset": dataset, "split": split, "versions": versions}
    (folder / "data" / "scores.js").write_text(script("scores", scores), encoding="utf-8")
    images = [image_data(kept) for kept in collected.images]
    (folder / "data" / "images.js").write_text(script("images", images), encoding="utf-8")
    classes = collected.table.classes
    for name, rows in (
        (REGIONS, region_rows(collected.images, classes)),
        (IMAGES, image_rows(collected.images)),
    ):
        (folder / name).write_text(csv_text(rows), encoding="utf-8")


def page_files() -> dict[str, bytes]:
    """The page's own files, by name: the same in every report."""
    page = resources.files("hfgd_jax.report") / "page"
    return {file.name: file.read_bytes() for file in page.iterdir() if file.is_file()}


def strangers(folder: Path) -> list[str]:
    """Names in a folder that a report does not have, at its top."""
    known = {*page_files(), REGIONS, IMAGES, "data", "pictures"}
    return sorted({path.name for path in folder.iterdir()} - known)


def scores_of_report(collected: Collector, runs: Sequence[Run]) -> dict[str, Any]:
    """What the page shows but for single images, ready for JSON."""
    counted = [one for one in (collected.counted, collected.compared) if one is not None]
    table, matrix = collected.table, collected.counted.matrix
    rows = [class_scores(one) for one in counted]
    classes = []
    for k, name in enumerate(table.classes):
        row = {"name": name, "colour": [int(c) for c in table.palette[k]]} | rows[0][k]
        classes.append(row | ({"other": rows[1][k]} if len(rows) > 1 else {}))
    return {
        "runs": [
            dataclasses.asdict(run) | {"scores": overall(one, table.classes)}
            for run, one in zip(runs, counted, strict=True)
        ],
        "images": len(collected.images),
        "classes": classes,
        "matrix": matrix.tolist(),
        "largest": pairs_of(matrix, LARGEST).tolist(),
        "labelled_pixels": int(matrix.sum()),
        "wrong_pixels": int(matrix.sum() - np.trace(matrix)),
        "options": dataclasses.asdict(collected.options),
    }


def overall(counted: Counted, classes: Sequence[str]) -> dict[str, float | None]:
    """mIoU, accuracies, and the means of the details; None where there is nothing to compute from."""
    found = metrics.summarize(counted.matrix, classes) | counted.details.summary(classes)
    return {key: value for key, value in found.items() if not key.startswith("per_class")}


def class_scores(counted: Counted) -> list[dict[str, float | None]]:
    """The scores and pixels of each class, in [0, 1] and None where there is nothing to compute from."""
    matrix, details = counted.matrix, counted.details.columns()
    right, labelled, predicted = np.diagonal(matrix), matrix.sum(1), matrix.sum(0)
    return [
        {
            "iou": _ratio(right[k], labelled[k] + predicted[k] - right[k]),
            "accuracy": _ratio(right[k], labelled[k]),
            "precision": _ratio(right[k], predicted[k]),
            "boundary": details["boundary_IoU"][k],
            "small": details["small_object_recall"][k],
            "labelled": int(labelled[k]),
            "predicted": int(predicted[k]),
        }
        for k in range(len(matrix))
    ]


def image_data(kept: Kept) -> dict[str, Any]:
    """An image for the page, ready for JSON."""
    rounded = lambda value, digits=4: None if value is None else round(value, digits)  # noqa: E731
    other = kept.compared
    return {
        "id": kept.id,
        "size": list(kept.size),
        "iou": rounded(kept.scores.iou),
        "accuracy": rounded(kept.scores.accuracy),
        "quality": rounded(kept.quality, 5),
        "classes": kept.classes.tolist(),
        "pairs": kept.pairs.tolist(),
        "iou2": rounded(other.iou) if other else None,
        "differ": rounded(kept.differ),
        "regions": [
            {
                "given": r.given,
                "suggested": r.suggested,
                "pixels": r.pixels,
                "share": rounded(r.share, 6),
                "confidence": rounded(r.confidence),
                "score": rounded(r.score, 7),
                "box": [rounded(side) for side in r.box],
            }
            for r in kept.regions
        ],
    }


def region_rows(images: Sequence[Kept], classes: Sequence[str]) -> list[list[Any]]:
    """Doubtful regions as a table with a head, the highest scores first; boxes are in pixels."""
    head = ["rank", "image", "score", "label", "suggested", "pixels", "confidence"]
    found = [(region, kept) for kept in images for region in kept.regions]
    found.sort(key=lambda entry: -entry[0].score)
    rows: list[list[Any]] = [[*head, "left", "top", "right", "bottom"]]
    for rank, (region, kept) in enumerate(found, start=1):
        height, width = kept.size
        box = [round(s * length) for s, length in zip(region.box, (width, height) * 2, strict=True)]
        names = classes[region.given], classes[region.suggested]
        numbers = region.pixels, round(region.confidence, 4)
        rows.append([rank, kept.id, round(region.score, 7), *names, *numbers, *box])
    return rows


def image_rows(images: Sequence[Kept]) -> list[list[Any]]:
    """Images as a table with a head, the lowest label quality first; those without labels are left out."""
    found = [(kept.quality, kept) for kept in images if kept.quality is not None]
    found.sort(key=lambda entry: entry[0])
    rows: list[list[Any]] = [["rank", "image", "label_quality", "pixel_accuracy", "regions"]]
    for rank, (quality, kept) in enumerate(found, start=1):
        rows.append(
            [rank, kept.id, round(quality, 6), round(kept.scores.accuracy or 0.0, 4), len(kept.regions)]
        )
    return rows


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV; text that a spreadsheet would take for a formula gets an apostrophe in front."""
    out = io.StringIO()
    safe = lambda v: f"'{v}" if isinstance(v, str) and v.startswith(_FORMULA) else v  # noqa: E731
    csv.writer(out, lineterminator="\n").writerows([safe(value) for value in row] for row in rows)
    return out.getvalue()


def script(name: str, value: Any) -> str:
    """A JavaScript statement that gives the page a value; nothing in it ends a script or a line early."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return f"REPORT.{name} = {text.replace('<', chr(92) + 'u003c')};\n"


def _ratio(part: np.integer, whole: np.integer) -> float | None:
    return float(part / whole) if whole else None
