"""The generated scenes: the same every time, all classes, and a task that needs context and resolution."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from hfgd_jax.data import scenes
from hfgd_jax.data.builders import shapes

HASH = (
    "import hashlib; from hfgd_jax.data import scenes; "
    "print(hashlib.sha256(b''.join(a.tobytes() for i in range(3) for a in scenes.scene(1, i))).hexdigest())"
)


@pytest.fixture(scope="module")
def series():
    return [scenes.scene(0, i) for i in range(40)]


def test_shapes_and_types(series):
    for image, label in series:
        assert image.shape == (*scenes.SIZE, 3) and label.shape == scenes.SIZE
        assert image.dtype == label.dtype == np.uint8


def test_scenes_are_the_same_in_every_process():
    here = hashlib.sha256(b"".join(a.tobytes() for i in range(3) for a in scenes.scene(1, i))).hexdigest()
    there = subprocess.run([sys.executable, "-c", HASH], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here


def test_scenes_differ_from_each_other_and_between_splits():
    one = [scenes.scene(split, i)[0].tobytes() for split in (0, 1) for i in range(10)]
    assert len(set(one)) == 20


@pytest.mark.parametrize("split", shapes.SPLITS)
def test_every_split_has_all_nine_classes(split):
    seed = list(shapes.SPLITS).index(split)
    images = np.zeros(256, int)
    for i in range(32):
        images[np.unique(scenes.scene(seed, i)[1])] += 1
    assert set(np.flatnonzero(images)) == {*range(9), 255}
    assert (images[:9] >= 16).all()


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (scenes.SKY, scenes.WATER, True),
        (scenes.ROAD, scenes.BUILDING, True),
        (scenes.SIGN, scenes.CAR, True),
        (scenes.GRASS, scenes.TREE, False),
        (scenes.SKY, scenes.ROAD, False),
    ],
)
def test_only_the_intended_classes_share_colours(series, one, other, alike):
    """From scene to scene a class changes its colour by more than it differs from one that is alike."""
    means = [
        [image[label == k].mean(0) for k in (one, other)] for image, label in series if (label == other).any()
    ]
    means = np.array(means)
    distance = np.abs((means[:, 0] - means[:, 1]).mean(0)).mean()
    spread = means.std(0).mean()
    assert (distance < spread) == alike, (distance, spread)


def test_poles_are_thin_and_some_things_small(series):
    widths, smallest = [], []
    for _, label in series:
        pole = np.pad((label == scenes.POLE).astype(int), ((0, 0), (1, 1)))
        edges = np.diff(pole, axis=1)
        starts, stops = np.nonzero(edges == 1)[1], np.nonzero(edges == -1)[1]
        widths.extend(stops - starts)
        smallest.append(min((label == scenes.SIGN).sum(), (label == scenes.CAR).sum()))
    assert 2 <= np.median(widths) <= 4
    assert np.min(smallest) < 150


def test_outlines_of_large_things_are_ignored_and_those_of_poles_are_not(series):
    touching = 0
    for _, label in series:
        a, b = label[:, :-1], label[:, 1:]
        large = np.isin(a, scenes._LARGE) & np.isin(b, scenes._LARGE)
        assert (a[large] == b[large]).all()
        touching += ((a == scenes.POLE) & np.isin(b, scenes._LARGE)).sum()
    assert touching > 500
    assert 0.02 < np.mean([(label == 255).mean() for _, label in series]) < 0.1
