"""hfgd_jax.tools.sample_images: images of a prepared data set as files."""

import numpy as np
import pytest
from PIL import Image

from hfgd_jax.data.prepared import open_split
from hfgd_jax.errors import UserError
from hfgd_jax.tools.sample_images import sample


def test_images_are_the_records(shapes_dir, tmp_path):
    split = open_split(shapes_dir, "shapes", "val")
    written = sample(split, 3, tmp_path / "new" / "images")
    assert len(set(written)) == 3
    for path, index in zip(written, (0, 2, 5), strict=True):  # spread over the 8
        assert split.record_id(index) in path.stem
        with Image.open(path) as image:
            np.testing.assert_array_equal(np.asarray(image), split.example(index)["image"])
    assert sample(split, 3, tmp_path / "new" / "images") == written  # again, over them


def test_no_more_images_than_records_are_written(shapes_dir, tmp_path):
    assert len(sample(open_split(shapes_dir, "shapes", "val"), 99, tmp_path)) == 8


def test_an_output_that_is_a_file_is_refused(shapes_dir, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--output="):
        sample(open_split(shapes_dir, "shapes", "val"), 1, tmp_path / "file")
