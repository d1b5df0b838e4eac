"""Draws runs' masks side by side, with enlarged parts, and which run is right where (paper, Fig. 3, 7-9).

    python -m hfgd_jax.tools.figures_compare --workdirs runs/sfpn,runs/hfgd --output compare.png
    python -m hfgd_jax.tools.figures_compare --workdirs runs/a,runs/b --images 0016E5_07965 --output one.svg

Without `--images` the images are those, of `--candidates` spread over the split, to which the runs give the
most different masks (`--choose=pixels`) or mIoUs (`--choose=iou`). The parts are those with most of the
pixels to which the runs give different classes.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from absl import flags

from hfgd_jax.data.prepared import Split
from hfgd_jax.errors import UserError, nearest
from hfgd_jax.figures import comparison, draw, trained
from hfgd_jax.figures.comparison import Box
from hfgd_jax.runs.system import Trained
from hfgd_jax.runtime import shell
from hfgd_jax.runtime.progress import Doing
from hfgd_jax.tools import figures_options, tables


def find(split: Split, ids: Sequence[str]) -> list[int]:
    """Records by their ids.

    Raises:
        UserError: an id that no record has, with the nearest.
    """
    known = {split.record_id(i): i for i in range(len(split))}
    for name in ids:
        if name not in known:
            near = nearest(name, known)
            hint = f"; did you mean {near!r}?" if near else ""
            raise UserError(f"--images={name}: {split.dataset}/{split.split} has no such image{hint}")
    return [known[name] for name in ids]


def parse_box(text: str, size: tuple[int, int]) -> Box:
    """A box from `TOP,LEFT,HEIGHT,WIDTH`.

    Raises:
        UserError: not four numbers, or not within an image of this height and width.
    """
    try:
        box = Box(*map(int, text.split(",")))
    except (TypeError, ValueError):
        raise UserError(f"--box={text}: want TOP,LEFT,HEIGHT,WIDTH in pixels") from None
    inside = min(box.top, box.left) >= 0 and min(box.height, box.width) > 0
    if not inside or box.top + box.height > size[0] or box.left + box.width > size[1]:
        raise UserError(f"--box={text}: not within the image, which is {size[0]} high and {size[1]} wide")
    return box


def compared(runs: Mapping[str, Trained], split: Split, indices: Sequence[int]) -> list[draw.ComparedImage]:
    """Records as the runs, by name, see them, without boxes."""
    examples = [split.example(i) for i in indices]
    images = [example["image"] for example in examples]
    masks = []
    for name, run in runs.items():
        with Doing(f"predicting with {name}", len(images)) as doing:
            masks.append([])
            for mask in trained.masks(run, images):
                masks[-1].append(mask)
                doing(len(masks[-1]))
    found = []
    for example, own in zip(examples, zip(*masks, strict=True), strict=True):
        label = example["label"]
        scores = [comparison.image_iou(mask, label, split.table.num_classes) for mask in own]
        found.append(draw.ComparedImage(example["id"], example["image"], label, own, scores, []))
    return found


def difference(one: draw.ComparedImage, by: str) -> float | None:
    """How different the runs' masks of an image are; None where nothing is labelled.

    Args:
        one: the image.
        by: `pixels`: the share of labelled pixels that not all runs give one class; `iou`: the largest less
            the smallest mIoU.
    """
    scores = [score for score in one.scores if score is not None]
    if not scores:
        return None
    if by == "iou":
        return max(scores) - min(scores)
    differing = comparison.disagreement(np.stack(one.masks), one.label)
    return float(differing.sum() / (one.label != comparison.IGNORE).sum())


def boxes(one: draw.ComparedImage, count: int, share: float) -> list[Box]:
    """The parts of an image, up to `count`, where the runs differ most."""
    differing = comparison.disagreement(np.stack(one.masks), one.label)
    return comparison.zoom_boxes(differing, count, share)


def define_flags() -> None:
    """The command's flags."""
    figures_options.define_runs(several=True)
    figures_options.define_checkpoint()
    figures_options.define_data()
    flags.DEFINE_list("images", [], "Ids of the images, joined by commas; else they are chosen.")
    flags.DEFINE_integer("count", 3, "How many images are chosen.", lower_bound=1, upper_bound=20)
    flags.DEFINE_integer("candidates", 40, "Of how many images; 0: of all of the split.", lower_bound=0)
    flags.DEFINE_enum("choose", "pixels", ("pixels", "iou"), "What makes images of runs different.")
    flags.DEFINE_integer(
        "zooms", 1, "Enlarged parts of each image.", lower_bound=0, upper_bound=draw.MOST_BOXES
    )
    flags.DEFINE_float("zoom", 0.3, "Sides of a part, as a share of the image's.", 0.02, 1.0)
    flags.DEFINE_multi_string("box", [], "TOP,LEFT,HEIGHT,WIDTH of a part, in pixels; with one of --images.")


def main(_: Sequence[str]) -> int:
    """Draws the comparison; returns the exit code."""
    v = flags.FLAGS
    if len(v.workdirs) < 2:
        raise UserError(f"--workdirs={','.join(v.workdirs)}: want two runs or more, to compare them")
    if v.box and (len(v.images) != 1 or len(v.box) > draw.MOST_BOXES):
        raise UserError(f"--box={v.box[0]}: wants one image in --images, and up to {draw.MOST_BOXES} boxes")
    paths, runs = figures_options.outputs(v), figures_options.read_runs(v)
    split = figures_options.open_labelled(next(iter(runs.values())), v)
    indices = find(split, v.images) or figures_options.spread_out(len(split), v.candidates)
    given = [parse_box(text, split.size(indices[0])) for text in v.box]
    images = compared(runs, split, indices)
    if not v.images:
        chosen = comparison.largest([difference(one, v.choose) for one in images], v.count)
        images = [images[i] for i in chosen]
    shown = [
        draw.ComparedImage(*(one.name, one.image, one.label, one.masks, one.scores), found)
        for one in images
        for found in [given or boxes(one, v.zooms, v.zoom)]
    ]
    names = list(runs)
    rows = [["image", *(f"{name}, mIoU" for name in names), "differing pixels"]]
    for one in shown:
        scores = ["n/a" if score is None else f"{100 * score:.1f}" for score in one.scores]
        rows.append([one.name, *scores, f"{100 * (difference(one, 'pixels') or 0.0):.1f} %"])
    print(tables.render(rows, "text"))
    figure = draw.compare(shown, names, split.table.classes, split.table.palette)
    figures_options.save(figure, paths)
    return 0


if __name__ == "__main__":
    define_flags()
    shell.run(main)
