"""Draws the figures with matplotlib, which is optional; no numbers are computed here.

Colours are those of Okabe and Ito and the map `cividis`, which are told apart with any colour vision. Classes
in a comparison have their data set's own colours, which people know. Text is 8 points or larger at the
figure's own size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float, Integer, UInt8

from hfgd_jax.data.labels import IGNORE, Palette
from hfgd_jax.figures import comparison
from hfgd_jax.figures.curves import Curve
from hfgd_jax.inference import render
from hfgd_jax.runtime import storage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
DPI = 150
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, YELLOW, BLACK = COLORS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000"),
)
MARKERS = ("o", "^", "s")
MOST_CLASSES = len(COLORS) * len(MARKERS)  # of `features`: a colour and a marker each
_BOXES = (BLACK, VERMILION, BLUE, GREEN)
MOST_BOXES = len(_BOXES)  # of an image in `compare`
_LINES = ("-", "--", ":", "-.")
_SMALL, _NORMAL = 8, 10  # points
_ANNOTATED = 14  # classes up to which a matrix has its numbers in it
_OUTCOMES = {
    comparison.BOTH_RIGHT: ("#FFFFFF", "both right"),
    comparison.ONLY_FIRST: (VERMILION, "only {first} right"),
    comparison.ONLY_LAST: (BLUE, "only {last} right"),
    comparison.NEITHER: ("#9A9A9A", "neither right"),
    IGNORE: ("#E8E8E8", "not labelled"),
}


@dataclasses.dataclass(frozen=True)
class ComparedImage:
    """An image as several runs see it.

    Attributes:
        name: of the image.
        image: uint8 RGB.
        label: class ids, 255 for ignored.
        masks: class ids, of each run.
        scores: mIoU of this image, of each run, in [0, 1]; None where there is none.
        boxes: the parts shown enlarged, up to `MOST_BOXES`.
    """

    name: str
    image: UInt8[np.ndarray, "h w 3"]
    label: Integer[np.ndarray, "h w"]
    masks: Sequence[Integer[np.ndarray, "h w"]]
    scores: Sequence[float | None]
    boxes: Sequence[comparison.Box]


class Bar(NamedTuple):
    """A score of a group of runs.

    Attributes:
        label: of the group.
        kind: what the score is of; bars of a kind have a colour.
        scores: of each seed, in [0, 1].
    """

    label: str
    kind: str
    scores: Sequence[float]


def compare(
    images: Sequence[ComparedImage], names: Sequence[str], classes: Sequence[str], palette: Palette
) -> Figure:
    """Image, label, the runs' masks, and which of the first and the last run is right where.

    A row for each image, and below it one for each of its boxes, enlarged. The number above a mask is the
    image's mIoU in per cent.

    Args:
        images: one or more, each with a mask a run.
        names: of the runs, two or more.
        classes, palette: of the data set; those in sight are in the legend.
    """
    titles = ["image", "label", *names, f"{names[0]} / {names[-1]}"]
    rows = [(one, box) for one in images for box in (None, *one.boxes)]
    width = 12.0 if len(titles) > 4 else 2.8 * len(titles)
    shape = np.mean([one.image.shape[0] / one.image.shape[1] for one in images])
    figure = _figure(width, len(rows) * (width / len(titles) * shape + 0.25) + 1.0)
    grid = figure.subplots(len(rows), len(titles), squeeze=False)
    colors = render.lookup(palette)
    for axes, (one, box) in zip(grid, rows, strict=True):
        part = box.part if box else (slice(None), slice(None))
        result = comparison.outcomes(one.masks[0], one.masks[-1], one.label)
        panels = [one.image, *(colors[mask] for mask in (one.label, *one.masks)), _outcome_colors()[result]]
        for ax, panel in zip(axes, panels, strict=True):
            ax.imshow(panel[part], interpolation="nearest" if box else "antialiased")
            _bare(ax)
            for zoomed, color in zip(() if box else one.boxes, _BOXES, strict=False):
                _outline(ax, zoomed, color)
            if box:
                ax.spines[:].set(color=_BOXES[one.boxes.index(box)], linewidth=1.4)
        axes[0].set_ylabel("enlarged" if box else _short(one.name), fontsize=_SMALL)
        if box is None:
            for ax, score in zip(axes[2:], one.scores, strict=False):
                ax.set_xlabel("no label" if score is None else f"{100 * score:.1f}", fontsize=_SMALL)
    for ax, title in zip(grid[0], titles, strict=True):
        ax.set_title(title, fontsize=_NORMAL)
    seen = np.unique(np.concatenate([m.ravel() for one in images for m in (one.label, *one.masks)]))
    known = [(colors[k] / 255, classes[k]) for k in seen if k != IGNORE]
    _legend(figure, known, "lower")
    _legend(figure, [(c, t.format(first=names[0], last=names[-1])) for c, t in _OUTCOMES.values()], "upper")
    return figure


def features(
    panels: Mapping[str, tuple[Float[np.ndarray, "n 2"], str]],
    labels: Integer[np.ndarray, " n"],
    classes: Mapping[int, str],
) -> Figure:
    """Embedded pixels of each run, a colour and a marker a class.

    Args:
        panels: by the run's name, its pixels in the plane and the line below the title.
        labels: class ids of the pixels, the same in all runs.
        classes: names of the classes by id, up to `MOST_CLASSES`.
    """
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure = _figure(4.0 * across, 4.2 * down + 0.6)
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for ax, (name, (points, line)) in zip(grid, panels.items(), strict=False):
        for number, (k, title) in enumerate(classes.items()):
            own = points[labels == k]
            color, marker = COLORS[number % len(COLORS)], MARKERS[number // len(COLORS)]
            ax.scatter(own[:, 0], own[:, 1], 9, color=color, marker=marker, lw=0.2, ec="#555555", label=title)
        ax.set_title(f"{name}\n{line}", fontsize=_NORMAL)
        _bare(ax)
    for ax in grid[len(panels) :]:
        ax.remove()
    _legend_below(figure, grid[:1], _NORMAL, markerscale=2)
    return figure


def matrices(panels: Mapping[str, Float[np.ndarray, "k k"]], classes: Sequence[str]) -> Figure:
    """A square of colours for each run, from 0 to 1, with its mean diagonal in the title.

    Args:
        panels: by the run's name, a matrix of numbers in [0, 1].
        classes: names of its rows and columns.
    """
    side = max(4.0, 0.14 * len(classes) + 1.5)
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure = _figure(side * across + 0.8, (side + 0.4) * down)
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for ax, (name, matrix) in zip(grid, panels.items(), strict=False):
        image = ax.imshow(matrix, cmap="cividis", vmin=0.0, vmax=1.0)
        ax.set_title(f"{name}\nmean diagonal {np.diagonal(matrix).mean():.3f}", fontsize=_NORMAL)
        ax.set_xticks(range(len(classes)), classes, rotation=90, fontsize=_SMALL)
        ax.set_yticks(range(len(classes)), classes, fontsize=_SMALL)
        for (i, j), value in np.ndenumerate(matrix if len(classes) <= _ANNOTATED else np.empty((0, 0))):
            ink = "white" if value < 0.5 else "black"
            ax.text(j, i, f"{100 * value:.0f}", ha="center", va="center", color=ink, fontsize=_SMALL)
    for ax in grid[len(panels) :]:
        ax.remove()
    bar = figure.colorbar(image, ax=list(grid[: len(panels)]), shrink=0.8)
    bar.set_label("confidence of the row's token in the column's class", fontsize=_SMALL)
    bar.ax.tick_params(labelsize=_SMALL)
    return figure


def bars(groups: Sequence[Bar], quantity: str) -> Figure:
    """A bar for each group at its mean, in per cent, with a point for each seed where there are several."""
    figure = _figure(max(4.5, 1.5 * len(groups) + 0.8), 4.2)
    ax = figure.subplots()
    kinds = list(dict.fromkeys(bar.kind for bar in groups))
    for i, bar in enumerate(groups):
        scores = 100 * np.asarray(bar.scores)
        number = kinds.index(bar.kind) % len(COLORS)
        named = "_" if bar.kind in [one.kind for one in groups[:i]] else bar.kind  # "_": not in the legend
        ax.bar(i, scores.mean(), 0.6, color=COLORS[number], label=named)
        if len(scores) > 1:
            ax.plot(np.full(len(scores), i), scores, "o", color="white", mec="black", ms=4)
        ax.text(i, scores.max() + 1, f"{scores.mean():.1f}", ha="center", fontsize=_NORMAL)
    ax.set_xticks(range(len(groups)), [bar.label for bar in groups], fontsize=_SMALL)
    ax.set_ylabel(quantity, fontsize=_NORMAL)
    ax.set_ylim(0, min(110, 1.12 * max(100 * max(bar.scores) for bar in groups) + 1))
    _quiet(ax)
    _legend_below(figure, [ax], _SMALL)
    return figure


def curves(panels: Mapping[str, Mapping[str, Curve]], log: Sequence[str] = ()) -> Figure:
    """A panel for each quantity, a line for each group of runs: the mean, with a band of the deviation.

    Args:
        panels: by quantity, by group.
        log: quantities with a logarithmic axis.
    """
    figure = _figure(4.4 * len(panels), 3.8)
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    order = list(dict.fromkeys(name for groups in panels.values() for name in groups))
    for ax, (quantity, groups) in zip(grid, panels.items(), strict=True):
        for name, curve in groups.items():
            i = order.index(name)
            color, line = COLORS[i % len(COLORS)], _LINES[i // len(COLORS) % len(_LINES)]
            marker = "o" if len(curve.steps) < 20 else ""
            ax.plot(curve.steps, curve.mean, line, color=color, marker=marker, ms=3, lw=1.3, label=name)
            if curve.deviation.any():
                low, high = curve.mean - curve.deviation, curve.mean + curve.deviation
                ax.fill_between(curve.steps, low, high, color=color, alpha=0.2, linewidth=0)
        ax.set_title(quantity, fontsize=_NORMAL)
        ax.set_xlabel("step", fontsize=_SMALL)
        if quantity in log:
            ax.set_yscale("log")
        _quiet(ax)
    _legend_below(figure, grid, _SMALL)
    return figure


def save(figure: Figure, paths: Sequence[epath.Path]) -> None:
    """Writes the figure as PNG, SVG or PDF, by each path's suffix (`SUFFIXES`); a file appears whole.

    The same figure gives the same bytes.
    """
    import matplotlib

    figure.draw_without_rendering()  # places everything; done again, it would move by parts of a point
    figure.set_layout_engine("none")
    for path in paths:
        form = path.suffix.lower()[1:]
        undated = {} if form == "png" else {"CreationDate" if form == "pdf" else "Date": None}
        path.parent.mkdir(parents=True, exist_ok=True)
        with storage.writing(path) as part, matplotlib.rc_context({"svg.hashsalt": "hfgd_jax"}):
            figure.savefig(part, format=form, metadata=undated)


def _figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _outcome_colors() -> UInt8[np.ndarray, "256 3"]:
    colors = np.zeros((256, 3), np.uint8)
    for outcome, (color, _) in _OUTCOMES.items():
        colors[outcome] = list(bytes.fromhex(color[1:]))
    return colors


def _bare(ax: Axes) -> None:
    ax.set(xticks=[], yticks=[])


def _quiet(ax: Axes) -> None:
    ax.tick_params(labelsize=_SMALL)
    ax.grid(axis="y", color="#DDDDDD", lw=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _outline(ax: Axes, box: comparison.Box, color: str) -> None:
    from matplotlib.patches import Rectangle

    place = (box.left - 0.5, box.top - 0.5)
    for width, ink in ((3.0, "white"), (1.4, color)):  # seen on dark and on bright pictures
        ax.add_patch(Rectangle(place, box.width, box.height, fill=False, lw=width, ec=ink))


def _legend(figure: Figure, entries: Sequence[tuple[Any, str]], side: str) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=color, edgecolor="#808080", label=title) for color, title in entries]
    columns = _columns(figure, [title for _, title in entries], _SMALL)
    place = f"outside {side} center"
    figure.legend(handles=handles, loc=place, ncols=columns, fontsize=_SMALL, frameon=False)


def _legend_below(figure: Figure, axes: Sequence[Axes], size: int, **options: Any) -> None:
    """What the panels show, each name once."""
    pairs = [pair for ax in axes for pair in zip(*ax.get_legend_handles_labels(), strict=True)]
    known = {title: handle for handle, title in reversed(pairs)}
    titles = list(dict.fromkeys(title for _, title in pairs))
    columns, place = _columns(figure, titles, size), "outside lower center"
    handles = [known[title] for title in titles]
    figure.legend(handles, titles, loc=place, ncols=columns, fontsize=size, frameon=False, **options)


def _columns(figure: Figure, titles: Sequence[str], size: int) -> int:
    """How many titles fit beside each other; a letter is 0.6 of the size wide, a handle seven letters."""
    width = (max(map(len, titles), default=1) + 7) * 0.6 * size / 72
    return max(1, min(len(titles), int(figure.get_figwidth() / width)))


def _short(name: str) -> str:
    return name if len(name) <= 24 else "..." + name[-21:]  # the end of an id tells more than its folders
