"""benchmarks/planted_label_errors.py: what it plants."""

import numpy as np
import planted_label_errors as planted


def scene():
    """Road below sky, and a car between them."""
    label = np.zeros((60, 100), np.uint8)
    label[30:], label[20:40, 40:52] = 3, 8
    return label


def test_a_swap_changes_one_part_and_all_of_it():
    label, rng = scene(), np.random.default_rng(0)
    (part,) = (p for p in planted.components(label) if label[p][0] == 8)
    spoilt = planted.swap(label, part, rng)
    np.testing.assert_array_equal(spoilt != label, part)
    assert len(np.unique(spoilt[part])) == 1 and spoilt[part][0] in (0, 3)


def test_a_shift_moves_a_part_sideways_and_fills_what_it_leaves():
    label, rng = scene(), np.random.default_rng(0)
    (part,) = (p for p in planted.components(label) if label[p][0] == 8)
    spoilt = planted.shift(label, part, rng)
    assert (spoilt == 8).sum() == part.sum()
    columns = np.flatnonzero((spoilt == 8).any(0))
    assert columns.size == 12 and 4 <= abs(int(columns[0]) - 40) <= 10
    assert set(np.unique(spoilt[part & (spoilt != 8)])) <= {0, 3}
    assert (planted.components(np.full((60, 100), 3, np.uint8))) == []  # too large


def test_errors_are_planted_into_a_copy(tmp_path, camvid_raw):
    before = {path: path.read_bytes() for path in camvid_raw.rglob("*.png")}
    done = planted.plant(camvid_raw, tmp_path / "copy", 4, seed=1)
    assert [entry["kind"] for entry in done] == ["swap", "swap", "shift", "shift"]
    assert {path: path.read_bytes() for path in camvid_raw.rglob("*.png")} == before
    changed = {
        path.stem
        for path in (tmp_path / "copy" / "train" / "labels").glob("*.png")
        if path.read_bytes() != before[camvid_raw / "train" / "labels" / path.name]
    }
    assert changed == {entry["image"] for entry in done}
