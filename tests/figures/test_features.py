"""The pixels that are drawn, the features there, and how separate they are."""

import jax.numpy as jnp
import numpy as np
import pytest

from hfgd_jax.figures import features
from hfgd_jax.inference.views import logits_at_label


def test_pixels_are_drawn_from_all_images_alike_and_of_each_class_as_many():
    rng = np.random.default_rng(1)
    labels = [rng.choice([0, 1, 2, 255], size, p=[0.6, 0.3, 0.05, 0.05]).astype(np.uint8) for size in SIZES]
    counts = features.class_pixels(labels, 3)
    assert counts.tolist() == [sum((label == k).sum() for label in labels) for k in range(3)]
    found = features.balanced_pixels(labels, [2, 0], 60, seed=4)
    assert found.label.tolist() == [2] * 60 + [0] * 60
    for image, row, column, k in zip(*found, strict=True):
        assert labels[image][row, column] == k
    assert len(set(zip(*found, strict=True))) == 120
    # Large images give more: the share of each is that of its pixels of the class, within three deviations.
    share = np.array([(label == 0).sum() for label in labels]) / counts[0]
    drawn = np.bincount(found.image[60:], minlength=3)
    assert (np.abs(drawn - 60 * share) < 3 * np.sqrt(60 * share * (1 - share))).all()
    for one, other in zip(found, features.balanced_pixels(labels, [2, 0], 60, seed=4), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (found.row != features.balanced_pixels(labels, [2, 0], 60, seed=5).row).any()
    everything = features.balanced_pixels(labels, [2], int(counts[2]), seed=0)
    assert len(set(zip(*everything, strict=True))) == counts[2]
    with pytest.raises(ValueError, match=f"class 2 has {counts[2]} pixels"):
        features.balanced_pixels(labels, [2], int(counts[2]) + 1, seed=0)


SIZES = [(40, 50), (80, 60), (30, 20)]


@pytest.mark.parametrize("geometry", ["align_corners", "half_pixel"])
@pytest.mark.parametrize("stride", [4, 32])
def test_features_are_sampled_as_logits_are(geometry, stride):
    """For an image that the model saw at three quarters, in a canvas larger than its own grid."""
    label, image = (90, 120), (67, 90)
    extra = 1 if geometry == "align_corners" else 0
    grid = (128 // stride + extra, 160 // stride + extra)
    maps = np.random.default_rng(0).standard_normal((*grid, 3)).astype(np.float32)
    wanted = logits_at_label(
        jnp.asarray(maps)[None],
        jnp.array([image]),
        jnp.array([label]),
        label,
        output_stride=stride,
        geometry=geometry,
    )[0]
    rows, columns = (index.ravel() for index in np.indices(label))
    found = features.features_at(maps, rows, columns, image, label, output_stride=stride, geometry=geometry)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.asarray(wanted).reshape(-1, 3), atol=1e-5)


def test_separation_by_hand():
    """Two classes on a line, at 0 and 2, and at 10 and 12."""
    found = features.separation(np.float32([[0], [2], [10], [12]]), np.array([5, 5, 1, 1]))
    # Of the pixel at 0: a = 2, b = 11; of that at 2: a = 2, b = 9.
    assert found.silhouette == pytest.approx((9 / 11 + 7 / 9) / 2)
    assert (found.intra, found.inter, found.ratio) == (1.0, 10.0, 0.1)


def test_separation_does_not_depend_on_scale_and_falls_where_classes_mix():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 40)
    noise, centers = rng.standard_normal((120, 8)), 6 * np.eye(3, 8)
    apart, scaled, mixed = (
        features.separation(noise + centers[labels], labels),
        features.separation(100 * (noise + centers[labels]), labels),
        features.separation(noise + centers[rng.permutation(labels)], labels),
    )
    assert scaled.silhouette == pytest.approx(apart.silhouette) and scaled.ratio == pytest.approx(apart.ratio)
    assert apart.silhouette > 0.4 > 0.05 > mixed.silhouette and apart.ratio < 1 < mixed.ratio
    # The mean is over classes: one that has most pixels counts as much as the others.
    assert apart.intra == pytest.approx(
        np.mean([np.linalg.norm(x - x.mean(0), axis=1).mean() for x in np.split(noise, 3)])
    )


@pytest.mark.slow
def test_umap_keeps_classes_apart_and_a_seed_gives_the_same_points():
    """Compiling UMAP takes half a minute."""
    pytest.importorskip("umap", reason="UMAP needs the extra [figures]")
    labels = np.repeat([0, 1], 60)
    found = np.random.default_rng(0).standard_normal((120, 8)) + 20 * labels[:, None]
    points = features.embed(found.astype(np.float32), seed=3)
    assert points.shape == (120, 2)
    np.testing.assert_array_equal(points, features.embed(found.astype(np.float32), seed=3))
    assert features.separation(points, labels).silhouette > 0.6
