"""Does the report find label errors? Plants known ones into CamVid's training labels and ranks the images.

    python benchmarks/planted_label_errors.py --raw RAW --workdir runs/camvid --output /tmp/planted

RAW is CamVid as `hfgd prepare --dataset camvid` takes it, in its first layout. In COUNT of the training
labels, one object each, half of the errors are a part with another class, half a mask that was moved; the
altered copy is prepared in OUTPUT/data, and the run looks at it. Prints how many of the planted images are
among the first FIRST by the score of their most doubtful region (the report's order) and by cleanlab's image
score, and writes OUTPUT/planted.json and OUTPUT/ranking.json. Exits with 1 where the report's order finds
fewer than WANTED. The same command again uses what is prepared; RAW itself is never written to.

A run that was trained on the unaltered labels has not seen the errors: that is the easy case, of labels that
were spoilt later or of a set that the run was not trained on.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from absl import flags
from PIL import Image

from hfgd_jax.data import builders
from hfgd_jax.report import predictions
from hfgd_jax.report.collect import Collector, Kept, Options
from hfgd_jax.tools import report

CLASSES, VOID = 11, 11
AREAS = (0.004, 0.06)  # of the image: the parts that are altered
SHIFTS = (0.04, 0.1)  # of the image's width
RING = 5  # pixels around a part that tell what is behind it


def components(label: np.ndarray) -> list[np.ndarray]:
    """The connected parts of one class whose share of the image lies in `AREAS`, as bool `[h, w]`."""
    found = []
    for k in range(CLASSES):
        number, ids, stats, _ = cv2.connectedComponentsWithStats((label == k).astype(np.uint8))
        for i in range(1, number):
            if AREAS[0] <= stats[i, cv2.CC_STAT_AREA] / label.size <= AREAS[1]:
                found.append(ids == i)
    return found


def swap(label: np.ndarray, part: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The label with the part in another class that the image has."""
    own = label[part][0]
    others = [k for k in np.unique(label) if k not in (own, VOID)]
    out = label.copy()
    out[part] = rng.choice(others)
    return out


def shift(label: np.ndarray, part: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The label with the part moved sideways; what it leaves gets the class that is most around it."""
    ring = cv2.dilate(part.astype(np.uint8), np.ones((2 * RING + 1, 2 * RING + 1))).astype(bool) & ~part
    around = np.bincount(label[ring], minlength=CLASSES)[:CLASSES]
    by = round(rng.uniform(*SHIFTS) * label.shape[1]) * int(rng.choice([-1, 1]))
    moved = np.zeros_like(part)
    if by > 0:
        moved[:, by:] = part[:, :-by]
    else:
        moved[:, :by] = part[:, -by:]
    out = label.copy()
    out[part] = around.argmax()
    out[moved] = label[part][0]
    return out


def plant(raw: Path, target: Path, count: int, seed: int) -> list[dict]:
    """Copies RAW's layout to a new folder with `count` spoilt training labels; returns what was done."""
    shutil.copytree(raw, target)
    labels = sorted((target / "train" / "labels").glob("*.png"))
    rng, planted = np.random.default_rng(seed), []
    for path in rng.permutation(np.array(labels, object)):
        label = np.asarray(Image.open(path))
        parts = components(label)
        if not parts:
            continue
        kind = "swap" if len(planted) < count // 2 else "shift"
        part = parts[rng.integers(len(parts))]
        spoilt = (swap if kind == "swap" else shift)(label, part, rng)
        changed = int((spoilt != label).sum())
        if changed < AREAS[0] * label.size:  # moved onto its own class
            continue
        Image.fromarray(spoilt).save(path)
        planted.append({"image": path.stem, "kind": kind, "class": int(label[part][0]), "pixels": changed})
        if len(planted) == count:
            return planted
    raise SystemExit(f"{raw}: only {len(planted)} training labels have a part of that size")


def looked_at(workdir: str, data_dir: Path, checkpoint: str) -> list[Kept]:
    """What the report keeps of the training images of the altered data set."""
    config = report.run_config(workdir, "train")
    config.data.data_dir = str(data_dir)
    split = report.labelled_split(config)
    run = predictions.load(config, workdir, checkpoint, split)
    with tempfile.TemporaryDirectory() as folder:
        found: Collector = report.collect(run, split, Path(folder), Options(side=64), None)
    return found.images


def rankings(images: list[Kept]) -> dict[str, list[str]]:
    """The images' names, the most doubtful first, by the report's order and by cleanlab's score."""
    best = {kept.id: max((r.score for r in kept.regions), default=0.0) for kept in images}
    quality = {kept.id: 1.0 if kept.quality is None else kept.quality for kept in images}
    return {
        "most doubtful region": sorted(best, key=lambda name: -best[name]),
        "softmin of the image": sorted(quality, key=lambda name: quality[name]),
    }


def main() -> int:
    """Plants, looks and counts; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--checkpoint", default="best")
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--first", type=int, default=60)
    parser.add_argument("--wanted", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    values = parser.parse_args()
    flags.FLAGS.mark_as_parsed()  # grain reads them
    record, data = values.output / "planted.json", values.output / "data"
    if not record.exists():
        planted = plant(values.raw, values.output / "raw", values.count, values.seed)
        builders.prepare("camvid", values.output / "raw", data, allow_partial=True)
        record.write_text(json.dumps(planted, indent=2) + "\n")
    planted = {entry["image"]: entry["kind"] for entry in json.loads(record.read_text())}
    orders = rankings(looked_at(values.workdir, data, values.checkpoint))
    (values.output / "ranking.json").write_text(json.dumps(orders, indent=2) + "\n")
    counts = {}
    for name, order in orders.items():
        hits = [planted[image] for image in order[: values.first] if image in planted]
        counts[name] = len(hits)
        kinds = ", ".join(f"{hits.count(kind)} {kind}" for kind in ("swap", "shift"))
        print(
            f"{name}: {len(hits)} of {len(planted)} among the first {values.first} of {len(order)} ({kinds})"
        )
    return 0 if counts["most doubtful region"] >= values.wanted else 1


if __name__ == "__main__":
    sys.exit(main())
