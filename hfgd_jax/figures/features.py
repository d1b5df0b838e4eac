"""How separate classes are in the feature that the tokens classify (paper, Fig. 4); functions of arrays.

The same pixels are looked at in every run: they are drawn from the labels, and the features, which lie at
each run's own output stride, are sampled there as evaluation samples logits.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Integer

from hfgd_jax.geometry import Geometry
from hfgd_jax.inference.sliding import COARSEST


class Pixels(NamedTuple):
    """Pixels of labels: which image (position in a list), row, column and class of each; int64 `[n]`."""

    image: Int[np.ndarray, " n"]
    row: Int[np.ndarray, " n"]
    column: Int[np.ndarray, " n"]
    label: Int[np.ndarray, " n"]


class Separation(NamedTuple):
    """How separate classes are.

    Attributes:
        silhouette: the mean over pixels of (b - a) / max(a, b), in [-1, 1], where a is the mean distance to
            the pixels of the own class and b that to those of the nearest other one (Rousseeuw 1987).
        intra: mean distance of a pixel to its class's centre; the mean over classes.
        inter: mean distance between two classes' centres.
    """

    silhouette: float
    intra: float
    inter: float

    @property
    def ratio(self) -> float:
        """intra / inter: the smaller, the more compact and the further apart are the classes."""
        return self.intra / self.inter if self.inter else np.inf


def class_pixels(labels: Sequence[Integer[np.ndarray, "_ _"]], num_classes: int) -> Int[np.ndarray, " k"]:
    """How many pixels of each class there are in all labels; int64 `[K]`."""
    counts = [np.bincount(label.ravel(), minlength=256)[:num_classes] for label in labels]
    return np.sum(counts, axis=0, dtype=np.int64)


def balanced_pixels(
    labels: Sequence[Integer[np.ndarray, "_ _"]], classes: Sequence[int], per_class: int, seed: int
) -> Pixels:
    """As many pixels of each class, drawn from those of all images alike, without repetition.

    Args:
        labels: uint8 class ids of each image, 255 for ignored.
        classes: ids of the classes to draw from, in the order of the result.
        per_class: how many of each.
        seed: of the draw.

    Raises:
        ValueError: a class has fewer pixels.
    """
    rng = np.random.default_rng(seed)
    found = []
    for k in classes:
        ends = np.cumsum([np.count_nonzero(label == k) for label in labels])
        if ends[-1] < per_class:
            raise ValueError(f"class {k} has {ends[-1]} pixels, not {per_class}")
        drawn = np.sort(rng.choice(ends[-1], per_class, replace=False))
        images = np.searchsorted(ends, drawn, side="right")
        for i in np.unique(images):
            before = ends[i - 1] if i else 0
            rows, columns = np.nonzero(labels[i] == k)
            own = drawn[images == i] - before
            found.append(np.stack([np.full(len(own), i), rows[own], columns[own], np.full(len(own), k)]))
    return Pixels(*np.concatenate(found, axis=1).astype(np.int64))


def features_at(
    features: Float[np.ndarray, "h w c"],
    rows: Int[np.ndarray, " n"],
    columns: Int[np.ndarray, " n"],
    image_size: tuple[int, int],
    label_size: tuple[int, int],
    *,
    output_stride: int,
    geometry: Geometry,
) -> Float[np.ndarray, "n c"]:
    """Bilinear samples of a feature map at pixels of the label, as `inference.logits_at_label` takes them.

    Args:
        features: of the padded image, one every `output_stride` pixels of its grid.
        rows, columns: pixels of the label.
        image_size: height and width of the image that the model saw, without padding.
        label_size: height and width of the label.
        output_stride: pixels of the image from one feature to the next.
        geometry: `align_corners` or `half_pixel`.

    Returns:
        Of the features' dtype.
    """
    extra = 1 if geometry == "align_corners" else 0
    lower, upper, weight = [], [], []
    for pixels, image, label in zip((rows, columns), image_size, label_size, strict=True):
        position = (pixels + 0.5) * image / label - 0.5  # pixel of the image
        position = position / output_stride if extra else (position + 0.5) / output_stride - 0.5
        last = -(-(image - extra) // COARSEST) * (COARSEST // output_stride) + extra - 1
        position = np.clip(position, 0, last)
        below = np.floor(position).astype(np.int64)
        lower.append(below)
        upper.append(np.minimum(below + 1, last))
        weight.append((position - below)[:, None])
    (top, left), (bottom, right), (down, across) = lower, upper, weight
    above = features[top, left] * (1 - across) + features[top, right] * across
    under = features[bottom, left] * (1 - across) + features[bottom, right] * across
    return (above * (1 - down) + under * down).astype(features.dtype)


def separation(features: Float[np.ndarray, "n c"], labels: Integer[np.ndarray, " n"]) -> Separation:
    """Silhouette, and distances within and between classes, Euclidean, of the features themselves.

    Args:
        features: of n pixels.
        labels: class ids, of two classes or more, and fewer than n.
    """
    from sklearn.metrics import silhouette_score

    classes = np.unique(labels)
    features = features.astype(np.float64)
    centers = np.stack([features[labels == k].mean(0) for k in classes])
    own = [
        np.linalg.norm(features[labels == k] - c, axis=1).mean()
        for k, c in zip(classes, centers, strict=True)
    ]
    between = np.linalg.norm(centers[:, None] - centers, axis=-1)[np.triu_indices(len(classes), 1)]
    silhouette = float(silhouette_score(features, labels))
    return Separation(silhouette, float(np.mean(own)), float(between.mean()))


def embed(
    features: Float[np.ndarray, "n c"], seed: int, neighbors: int = 15, min_distance: float = 0.1
) -> Float[np.ndarray, "n 2"]:
    """UMAP of the features to the plane (McInnes et al. 2018; umap-learn); the same for the same seed.

    Args:
        features: of n pixels.
        seed: of its random numbers.
        neighbors, min_distance: UMAP's `n_neighbors` and `min_dist`.
    """
    import umap

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="n_jobs value")  # a seed means one thread: we know
        fitted = umap.UMAP(n_neighbors=neighbors, min_dist=min_distance, random_state=seed)
        return fitted.fit_transform(features)
