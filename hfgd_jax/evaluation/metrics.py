"""The score: one confusion matrix over a whole set, and what is read from it."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, Int64, Integer


def confusion_matrix(
    labels: Integer[np.ndarray | Array, "b h w"],
    predictions: Integer[np.ndarray | Array, "b h w"],
    num_classes: int,
) -> Int32[Array, "k k"]:
    """Counts the pixels of each (truth, prediction) pair; exact, and made for use under `jit`.

    Args:
        labels: integers of any type; ids outside `[0, num_classes)`, such as 255, are ignored.
        predictions: integers in `[0, num_classes)`. One outside counts as the nearest class, so that no
            labelled pixel goes uncounted.
        num_classes: K, a Python integer.

    Returns:
        int32 `[K, K]`: rows are truth, columns are prediction. Fewer than 2**31 pixels a call; add the
        matrices of many batches in int64 on the host.
    """
    if labels.shape != predictions.shape:
        raise ValueError(f"labels {labels.shape} and predictions {predictions.shape} differ in shape")
    labels = jnp.asarray(labels).astype(jnp.int32)
    predictions = jnp.clip(jnp.asarray(predictions).astype(jnp.int32), 0, num_classes - 1)

    # Scattering is some 200 times faster than the products on a CPU (171 classes), but serial on a TPU.
    def by_scatter(labels, predictions):
        return _by_scatter(labels, predictions, num_classes)

    def by_products(labels, predictions):
        return _by_products(labels, predictions, num_classes)

    return jax.lax.platform_dependent(labels, predictions, tpu=by_products, default=by_scatter)


def _by_scatter(labels: jax.Array, predictions: jax.Array, num_classes: int) -> jax.Array:
    valid = (labels >= 0) & (labels < num_classes)
    pairs = jnp.where(valid, labels * num_classes + predictions, num_classes**2)
    counts = jnp.zeros(num_classes**2 + 1, jnp.int32).at[pairs.reshape(-1)].add(1)
    return counts[:-1].reshape(num_classes, num_classes)


def _by_products(labels: jax.Array, predictions: jax.Array, num_classes: int) -> jax.Array:
    """One-hot products, a row of pixels at a time: no float32 sum comes near 2**24, its exact range."""

    def add_row(total, row):
        truth, predicted = (jax.nn.one_hot(ids, num_classes, dtype=jnp.float32) for ids in row)
        product = jnp.einsum("bwt,bwp->tp", truth, predicted, preferred_element_type=jnp.float32)
        return total + product.astype(jnp.int32), None

    rows = (jnp.moveaxis(labels, 1, 0), jnp.moveaxis(predictions, 1, 0))
    return jax.lax.scan(add_row, jnp.zeros((num_classes, num_classes), jnp.int32), rows)[0]


def image_matrix(
    label: Integer[np.ndarray, "h w"], mask: Integer[np.ndarray, "h w"], num_classes: int
) -> Int64[np.ndarray, "k k"]:
    """The confusion matrix of one image, on the host; label values from `num_classes` on are left out.

    Args:
        label, mask: class ids, of the mask all below `num_classes`.
        num_classes: K.
    """
    known = label < num_classes
    pairs = label[known].astype(np.int64) * num_classes + mask[known]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def summarize(matrix: Integer[np.ndarray, "k k"], classes: Sequence[str]) -> dict[str, Any]:
    """Reads the scores from a confusion matrix; plain Python numbers in [0, 1], ready for JSON.

    Args:
        matrix: any integer type, rows are truth; summed in int64.
        classes: the K names, each once.

    Returns:
        `mIoU` (mean over the classes that are in the prediction or in the label), `pixel_accuracy`,
        `mean_accuracy` (mean over the classes that are in the label) and `per_class`, name to IoU. What has
        nothing to be computed from (an absent class; everything, of an empty matrix) is None, never NaN.
    """
    hits, truth, predicted = _counts(matrix, classes)
    union = truth + predicted - hits
    iou = [_ratio(h, u) for h, u in zip(hits, union, strict=True)]
    return {
        "mIoU": _mean(iou),
        "pixel_accuracy": _ratio(hits.sum(), truth.sum()),
        "mean_accuracy": _mean([_ratio(h, t) for h, t in zip(hits, truth, strict=True)]),
        "per_class": dict(zip(classes, iou, strict=True)),
    }


def table(
    matrix: Integer[np.ndarray, "k k"],
    classes: Sequence[str],
    details: Mapping[str, Sequence[float | None]] | None = None,
) -> str:
    """The scores as a printable table in percent: a line per class, with its pixels; `n/a` where absent.

    Args:
        matrix, classes: as in `summarize`.
        details: more columns, each a value in [0, 1] or None per class; the last line has their means.
    """
    hits, truth, predicted = _counts(matrix, classes)
    more = {name.replace("_", " ") + " %": values for name, values in (details or {}).items()}
    rows = [("class", "IoU %", "accuracy %", "labelled px", "predicted px", *more)]
    extra = zip(*more.values(), strict=True) if more else [()] * len(classes)
    for name, h, t, p, own in zip(classes, hits, truth, predicted, extra, strict=True):
        scores = (_percent(_ratio(h, t + p - h)), _percent(_ratio(h, t)), f"{t:,}", f"{p:,}")
        rows.append((name, *scores, *map(_percent, own)))
    scores = summarize(matrix, classes)
    means = (_percent(scores["mIoU"]), _percent(scores["mean_accuracy"]))
    pixels = (f"{truth.sum():,}", f"{predicted.sum():,}")
    rows.append(("all", *means, *pixels, *(_percent(_mean(values)) for values in more.values())))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *_right(row[1:], widths[1:])]) for row in rows]
    rule = "-" * len(lines[0])
    accuracy = f"pixel accuracy %: {_percent(scores['pixel_accuracy'])}"
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], accuracy])


def _counts(matrix: Any, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    matrix = np.asarray(matrix)
    if matrix.shape != (len(classes), len(classes)) or not np.issubdtype(matrix.dtype, np.integer):
        raise ValueError(
            f"confusion matrix {matrix.shape} of {matrix.dtype}: want integers for {len(classes)} classes"
        )
    matrix = matrix.astype(np.int64)
    return np.diagonal(matrix), matrix.sum(axis=1), matrix.sum(axis=0)


def _ratio(part: np.integer, whole: np.integer) -> float | None:
    return float(part / whole) if whole else None


def _mean(values: Sequence[float | None]) -> float | None:
    present = [v for v in values if v is not None]
    return float(np.mean(present)) if present else None


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.2f}"


def _right(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
