"""hfgd_jax.tools.browse: the samples are the run's own, and the sheet shows them."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from etils import epath
from PIL import Image

from hfgd_jax import config as configuration
from hfgd_jax.data import pipeline
from hfgd_jax.data.prepared import CorruptRecordError, open_split
from hfgd_jax.errors import UserError
from hfgd_jax.models import backbones
from hfgd_jax.tools import browse


def config_of(data_dir, **fields):
    config = configuration.default()
    configuration.set_tiny(config)
    config.data.update({"dataset": "camvid", "num_classes": 11, "data_dir": str(data_dir)} | fields)
    return config


def test_samples_are_those_that_a_run_sees_first(camvid_dir):
    config = config_of(camvid_dir, workers=1)
    config.train.seed = 3
    split = open_split(camvid_dir, "camvid", "train")
    samples = browse.first_samples(config, split, 5)
    mean_pixel = backbones.normalization(config.model.backbone.name, "")[0]
    config.data.workers = 0
    batches = pipeline.train_batches(split, config.data, batch_size=2, seed=3, mean_pixel=mean_pixel)
    with batches:
        rows = [(batch, row) for batch in (next(batches) for _ in range(3)) for row in range(2)]
    for sample, (batch, row) in zip(samples, rows, strict=False):
        np.testing.assert_array_equal(sample.seen_image, batch["image"][row])
        np.testing.assert_array_equal(sample.seen_label, batch["label"][row])
        record = split.example(int(batch["index"][row]))
        assert sample.id == record["id"]
        np.testing.assert_array_equal(sample.image, record["image"])
        np.testing.assert_array_equal(sample.label, record["label"])


def test_unreadable_records_raise_or_are_left_out(spoilt_dir):
    split = open_split(spoilt_dir, "camvid", "train")
    with pytest.raises(CorruptRecordError):
        browse.first_samples(config_of(spoilt_dir), split, 6)
    found = browse.first_samples(config_of(spoilt_dir, skip_corrupt=True), split, 6)
    assert sorted(sample.id[:5] for sample in found) == ["seq00", "seq01", "seq04", "seq05"]


def test_the_sheet_shows_images_colours_and_hatching(camvid_dir):
    """Where each panel is, told by its colours; one sample, drawn large."""
    table = open_split(camvid_dir, "camvid", "train").table
    side, grey, seen_grey = browse._PANEL, 100, 180
    label = np.zeros((side, side), np.uint8)
    label[:, side // 2 :] = 255
    seen_label = np.full((side, side), 3, np.uint8)
    image, seen = (np.full((side, side, 3), g, np.uint8) for g in (grey, seen_grey))
    sample = browse.Sample("some/folder/name", image, label, seen, seen_label)
    sheet = browse.sheet([sample], table, "title")
    assert sheet.dtype == np.uint8
    step, y = browse._PANEL + browse._GAP, 2 * browse._LINE
    panels = [sheet[y : y + side, browse._GAP + i * step :][:, :side] for i in range(4)]
    np.testing.assert_array_equal(panels[0], image)
    np.testing.assert_array_equal(panels[2], seen)
    blend = lambda g, k: (1 - browse._ALPHA) * g + browse._ALPHA * table.palette[k]  # noqa: E731
    np.testing.assert_allclose(
        panels[1][:, : side // 2], np.full((side, side // 2, 3), blend(grey, 0)), atol=2
    )
    np.testing.assert_allclose(panels[3], np.full((side, side, 3), blend(seen_grey, 3)), atol=2)
    hatched = (panels[1][:, side // 2 :] != grey).all(-1)
    assert 0.2 < hatched.mean() < 0.3 and (panels[1][:, side // 2 :][~hatched] == grey).all()
    # Below: the captions, and a legend of the two classes in sight alone.
    below = sheet[y + side :].reshape(-1, 3)
    for k, colour in enumerate(table.palette):
        assert (below == colour).all(-1).any() == (k in (0, 3)), table.classes[k]
    more = browse.sheet([sample] * 3, table, "title")
    assert more.shape[0] - sheet.shape[0] == 2 * (side + browse._LINE + browse._GAP)
    assert more.shape[1] == sheet.shape[1]


@pytest.mark.parametrize("size", [(5, 280), (280, 7), (33, 33), (300, 500), (2000, 1), (141, 100)])
def test_images_of_any_size_fit_the_sheet(size, camvid_dir):
    table = open_split(camvid_dir, "camvid", "train").table
    image, label = np.zeros((*size, 3), np.uint8), np.full(size, 255, np.uint8)
    name = "a/very/long/path/" * 20 + "name"
    sheet = browse.sheet([browse.Sample(name, image, label, image, label)], table, "title")
    assert sheet.shape[1] == 4 * browse._PANEL + 5 * browse._GAP
    assert sheet.shape[0] <= browse._PANEL + 200


def test_bad_or_existing_outputs_are_refused(tmp_path):
    there = epath.Path(tmp_path / "sheet.png")
    browse.check_output(there, overwrite=False)
    there.write_text("")
    with pytest.raises(UserError, match=r"--output=.*sheet.png: is there already; .*--overwrite"):
        browse.check_output(there, overwrite=False)
    browse.check_output(there, overwrite=True)
    with pytest.raises(UserError, match=r"want a name that ends in \.png"):
        browse.check_output(epath.Path(tmp_path / "sheet"), overwrite=False)


def test_the_command_writes_a_sheet_once(camvid_dir, tmp_path, user_env):
    """As a process: an image of validation records in a new folder, once."""
    output = tmp_path / "new" / "sheet.jpg"
    command = [sys.executable, "-m", "hfgd_jax.tools.browse", "--config=configs/camvid.py:tiny"]
    command += [f"--config.data.data_dir={camvid_dir}", f"--output={output}", "--split=val", "--count=2"]
    call = lambda: subprocess.run(command, capture_output=True, text=True, env=user_env, check=False)  # noqa: E731
    result = call()
    assert (result.returncode, result.stdout) == (0, f"2 samples of camvid/val in {output}\n"), result.stderr
    with Image.open(output) as image:
        assert image.size[0] == 4 * browse._PANEL + 5 * browse._GAP
    before = output.read_bytes()
    result = call()
    assert result.returncode == 2 and result.stderr.startswith("error: --output=")
    assert output.read_bytes() == before


def test_mostly_padded_crops_get_a_note(camvid_dir):
    """Records of 53x37, 41x61, 64x48 (twice), 97x33 and 40x40: 58x44 at the median."""
    split = open_split(camvid_dir, "camvid", "train")
    sample = browse.first_samples(config_of(camvid_dir), split, 6)
    note = browse.padding(config_of(camvid_dir, crop=(129, 193)), sample)
    assert note.startswith("note: 90% of a crop of 193x129 is padding, for the images are 58x44")
    assert "--config.data.crop='(65, 65)' fits" in note
    wide = [dataclasses.replace(x, image=np.zeros((200, 300, 3), np.uint8)) for x in sample]
    fits = browse.padding(config_of(camvid_dir, crop=(257, 257)), wide)
    assert "22% of a crop of 257x257" in fits and "crop='(193, 257)' fits" in fits
    assert browse.padding(config_of(camvid_dir, crop=(193, 257)), wide) is None
    assert browse.padding(config_of(camvid_dir, crop=(193, 257), input_scale=0.5), wide) is not None
