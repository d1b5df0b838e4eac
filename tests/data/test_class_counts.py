"""Pixels of each class over a split, and the class weights that a config gets of them."""

from types import SimpleNamespace

import numpy as np
import pytest

from hfgd_jax import config as configuration
from hfgd_jax.data.class_counts import class_counts
from hfgd_jax.data.prepared import CorruptRecordError, open_split
from hfgd_jax.errors import UserError
from hfgd_jax.runs import system


def expected(split, indices):
    pixels, beside = np.zeros(split.table.num_classes, int), np.zeros(split.table.num_classes, int)
    for i in indices:
        label = split.example(i)["label"]
        for k in range(split.table.num_classes):
            pixels[k] += (label == k).sum()
            beside[k] += (label != 255).sum() if (label == k).any() else 0
    return pixels, beside


def test_pixels_of_each_class_are_counted(camvid_dir):
    split, lines = open_split(camvid_dir, "camvid", "train"), []
    for found, want in zip(class_counts(split, report=lines.append), expected(split, range(6)), strict=True):
        np.testing.assert_array_equal(found, want)
    assert len(lines) == 6 and lines[-1].endswith("6/6")
    assert (expected(split, range(6))[0] > 0).all()


def test_an_unreadable_label_raises_or_is_skipped(spoilt_dir, monkeypatch):
    """A spoilt image is no hindrance; a spoilt label is named, or left out."""
    split = open_split(spoilt_dir, "camvid", "train")
    class_counts(split)
    read = split._read
    monkeypatch.setattr(split, "_read", lambda i: read(i) | ({"label": b"x"} if i == 1 else {}))
    with pytest.raises(CorruptRecordError, match=r"record 1 \(id 'seq01.*its label cannot be decoded"):
        class_counts(split)
    whole = open_split(spoilt_dir, "camvid", "train")
    kept = sum(np.bincount(whole.label(i).ravel(), minlength=11)[:11] for i in (0, 2, 3, 4, 5))
    np.testing.assert_array_equal(class_counts(split, skip_corrupt=True)[0], kept)


def test_a_split_without_labels_is_refused(camvid_dir, monkeypatch):
    split = open_split(camvid_dir, "camvid", "train")
    monkeypatch.setattr(split, "labelled", False)
    with pytest.raises(UserError, match="split 'train' has no labels to count"):
        class_counts(split)


def test_balance_gives_the_loss_weights_and_leaves_the_config(camvid_dir):
    config = configuration.default()
    configuration.set_tiny(config)
    config.data.update({"dataset": "camvid", "num_classes": 11, "data_dir": str(camvid_dir)})
    plain = system.build(config)
    split = open_split(camvid_dir, "camvid", "train")
    assert system.balanced(plain, split) is plain
    config.loss.balance = "median_frequency"
    weighted = system.balanced(system.build(config), split)
    pixels, beside = expected(split, range(6))
    frequency = pixels / beside
    np.testing.assert_allclose(
        weighted.config.loss.class_weights, np.minimum(np.median(frequency) / frequency, 10)
    )
    configuration.validate(weighted.config)
    assert config.loss.balance == "median_frequency" and config.loss.class_weights == ()


def test_images_without_a_class_do_not_count_for_it():
    class Labels:
        labelled, table = True, SimpleNamespace(num_classes=3)
        rows = (np.array([[0, 0, 1]], np.uint8), np.array([[0, 255]], np.uint8))

        def __len__(self):
            return len(self.rows)

        def label(self, index):
            return self.rows[index]

    pixels, beside = class_counts(Labels())
    assert pixels.tolist() == [3, 1, 0] and beside.tolist() == [4, 3, 0]
