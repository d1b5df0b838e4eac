"""Evaluations without a model: scenes of blobs, and predictions that err at their borders and in places."""

import numpy as np

from hfgd_jax.data.labels import LabelTable, voc_colours
from hfgd_jax.report.collect import Collector, Seen
from hfgd_jax.report.write import Run, write

HOSTILE = ("<img src=x onerror=alert(1)>", "=HYPERLINK(1)", "a & b </script>", "plain", "rare", "absent")


def table(classes=HOSTILE):
    raw_ids = {k: k for k in range(len(classes))} | {255: 255}
    return LabelTable("synthetic", tuple(classes), voc_colours(range(1, len(classes) + 1)), raw_ids)


def coarse(rng, size, cell, values):
    """Blobs: what neighbours share."""
    small = rng.choice(values, (size[0] // cell + 1, size[1] // cell + 1))
    return np.kron(small, np.ones((cell, cell), small.dtype))[: size[0], : size[1]]


def scene(number, size=(96, 128), classes=5, compare=False):
    """A `Seen`; of every fifth one a large part is predicted with certainty as another class."""
    rng = np.random.default_rng(number)
    label = coarse(rng, size, 24, np.arange(classes, dtype=np.uint8))
    mask = np.roll(label, 2, axis=1)
    confidence = np.where(mask == label, 0.97, 0.6).astype(np.float32)
    if number % 5 == 0:
        rows, columns = slice(10, 50), slice(20, 60)
        mask[rows, columns], confidence[rows, columns] = (label[30, 40] + 1) % classes, 0.95
    given = np.where(mask == label, confidence, np.where(confidence > 0.9, 0.005, 0.2)).astype(np.float32)
    label = label.copy()
    label[:4] = 255
    grain = rng.integers(0, 30, (*size, 1), np.uint8)
    image = (60 + 30 * np.minimum(label, classes)[..., None] + grain + np.zeros(3, np.uint8)).astype(np.uint8)
    other = np.roll(label, 5, axis=0) % classes if compare else None
    return Seen(f"{number:05d}<b>&\"'", image, label, mask, confidence, given, other)


def collected(folder, scenes, options, compare=False, classes=HOSTILE):
    collector = Collector(folder, table(classes), options, compare=compare)
    for seen in scenes:
        collector.add(seen)
    return collector


def a_run(name):
    curves = {"loss": [(step, 3 / step) for step in range(1, 50)], "mIoU": [(20, 0.3), (49, 0.5)]}
    return Run(name, 49, {"split": "val", "scales": [1.0]}, {"train.steps": 49}, curves)


def write_report(folder, scenes, options, compare=False, classes=HOSTILE):
    folder.mkdir(parents=True, exist_ok=True)
    found = collected(folder, scenes, options, compare, classes)
    runs = [a_run("first <i>"), a_run("second")][: 1 + compare]
    write(folder, found, runs, dataset="synthetic", split="val", versions={"jax": "0"})
    return found
