"""Draws the features that runs classify, by UMAP, with how separate the classes are (paper, Fig. 4).

    python -m hfgd_jax.tools.figures_features --workdirs runs/sfpn,runs/hfgd --output features.png
    python -m hfgd_jax.tools.figures_features --workdirs runs/a,runs/b --classes pole,sign --output f.svg

The same pixels in all runs: as many of each class, drawn from the labels of `--count` images. The silhouette
and the distances are those of the features; the picture is of their embedding. Without `--classes`, the
classes are those that the runs find worst.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from hfgd_jax.errors import UserError, nearest
from hfgd_jax.figures import draw, features, trained
from hfgd_jax.runtime import shell, storage
from hfgd_jax.runtime.progress import Doing
from hfgd_jax.tools import figures_options, tables

CLASSES = 8  # that are chosen, as in the paper


def worst(
    evaluations: Sequence[Mapping[str, Any]], classes: Sequence[str], enough: Sequence[bool]
) -> list[int]:
    """Ids of up to `CLASSES` classes that runs find worst, in their own order.

    Args:
        evaluations: of the runs, with `per_class`.
        classes: all names.
        enough: whether a class has pixels enough.
    """
    means = {}
    for k, name in enumerate(classes):
        scores = [score for one in evaluations if (score := one["per_class"].get(name)) is not None]
        if scores and enough[k]:
            means[k] = sum(scores) / len(scores)
    return sorted(sorted(means, key=lambda k: means[k])[:CLASSES])


def named(wanted: Sequence[str], classes: Sequence[str], pixels: Sequence[int], per_class: int) -> list[int]:
    """Ids of the classes of these names.

    Raises:
        UserError: a name that there is not, fewer than two or too many, or a class with too few pixels.
    """
    found = []
    for name in wanted:
        if name not in classes:
            near = nearest(name, classes)
            hint = f"; did you mean {near!r}?" if near else f"; the classes are {', '.join(classes)}"
            raise UserError(f"--classes: no {name!r}{hint}")
        found.append(classes.index(name))
        if pixels[found[-1]] < per_class:
            raise UserError(
                f"--classes: {name!r} has {pixels[found[-1]]} pixels in these images, fewer than "
                f"--per_class={per_class}; lower it, or raise --count"
            )
    if not 2 <= len(set(found)) == len(found) <= draw.MOST_CLASSES:
        raise UserError(f"--classes={','.join(wanted)}: want 2 to {draw.MOST_CLASSES} different classes")
    return found


def _evaluations(workdirs: Sequence[str]) -> list[dict[str, Any]]:
    try:
        return [storage.read_json(storage.resolve(w, "--workdirs") / "metrics.json") for w in workdirs]
    except UserError as error:
        raise UserError(f"{error}; evaluate the run, or say which --classes") from None


def define_flags() -> None:
    """The command's flags."""
    figures_options.define_runs()
    figures_options.define_checkpoint()
    figures_options.define_data()
    flags.DEFINE_list("classes", [], f"Names of classes; empty: the {CLASSES} of the lowest IoU.")
    flags.DEFINE_integer(
        "count", 48, "Images to draw pixels from, spread over the split; 0: all.", lower_bound=0
    )
    flags.DEFINE_integer("per_class", 200, "Pixels of each class.", lower_bound=16, upper_bound=10_000)
    flags.DEFINE_integer("seed", 0, "Of the pixels and of UMAP.", lower_bound=0)


def main(_: Sequence[str]) -> int:
    """Draws the features and prints how separate they are; returns the exit code."""
    v = flags.FLAGS
    paths, runs = figures_options.outputs(v, "sklearn", "umap"), figures_options.read_runs(v)
    split = figures_options.open_labelled(next(iter(runs.values())), v)
    classes = split.table.classes
    indices = figures_options.spread_out(len(split), v.count)
    labels = [split.label(i) for i in indices]
    counts = features.class_pixels(labels, len(classes))
    if v.classes:
        ids = named(v.classes, classes, counts, v.per_class)
    else:
        ids = worst(_evaluations(v.workdirs), classes, counts >= v.per_class)
        if len(ids) < 2:
            raise UserError(
                f"--per_class={v.per_class}: not two classes have as many pixels in {len(labels)} images"
            )
    pixels = features.balanced_pixels(labels, ids, v.per_class, v.seed)
    used = np.unique(pixels.image)
    pixels = pixels._replace(image=np.searchsorted(used, pixels.image))
    images = [split.example(indices[i])["image"] for i in used]
    rows, panels = [["run", "step", "silhouette", "within", "between", "within / between"]], {}
    for name, run in runs.items():
        with Doing(f"features of {name}", len(images)) as doing:
            found = trained.features(run, images, pixels, doing)
        apart = features.separation(found, pixels.label)
        scores = (apart.silhouette, apart.intra, apart.inter, apart.ratio)
        rows.append([name, str(run.step), *(f"{value:.3f}" for value in scores)])
        with Doing(f"embedding {name}"):
            points = features.embed(found, v.seed)
        panels[name] = (points, f"silhouette {apart.silhouette:.3f}, within / between {apart.ratio:.3f}")
    print(tables.render(rows, "text"))
    print(f"{v.per_class} pixels of each of {', '.join(classes[k] for k in ids)}; {len(images)} images")
    figures_options.save(draw.features(panels, pixels.label, {k: classes[k] for k in ids}), paths)
    return 0


if __name__ == "__main__":
    define_flags()
    shell.run(main)
