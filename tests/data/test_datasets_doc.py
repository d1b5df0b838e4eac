"""docs/datasets.md says of each data set what the code does."""

import re
from pathlib import Path

from hfgd_jax.data import builders
from hfgd_jax.data.builders import class_lists, folder, shapes
from hfgd_jax.data.labels import TABLES

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "datasets.md").read_text()
ROWS = {
    cells[0].strip("`"): cells[1:]
    for line in TEXT.splitlines()
    if (cells := line.strip("| ").split(" | "))[1:]
}


def test_every_data_set_has_its_row_with_classes_and_counts():
    assert set(builders.BUILDERS) <= set(ROWS)
    for name, builder in builders.BUILDERS.items():
        config, classes, counts, _ = ROWS[name]
        assert (ROOT / config.strip("`").split(":")[0]).is_file()
        if name == "folder":
            assert classes == counts == "yours"
            continue
        assert int(classes) == TABLES[name].num_classes
        found = {split: int(count) for split, count in re.findall(r"(\w+) (\d+)", counts)}
        assert found == (shapes.SPLITS if name == "shapes" else builder.COUNTS)


def test_every_raw_layout_is_shown():
    for name in set(builders.BUILDERS) - builders.EMBEDDED - {"folder"}:
        assert re.search(rf"^`{name}`", TEXT, re.MULTILINE), name
    for suffix in (*folder.IMAGE_SUFFIXES, *folder.MASK_SUFFIXES):
        assert re.search(rf"{re.escape(suffix)}\b", TEXT), suffix
    for name in (*class_lists.IGNORED, class_lists.NAMES, class_lists.CSV, class_lists.LABELMAP):
        assert f"{name}" in TEXT, name
