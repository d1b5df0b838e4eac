"""A real process with a small trained run, under load and under fire; it ends with Ctrl-C.

The figures of a real run: benchmarks/serve_load.py, docs/serve.md.
"""

import io
import itertools
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from serve_load import JSON, load, started
from serving import HOSTILE, encoded

from hfgd_jax.data.prepared import open_split

pytestmark = pytest.mark.slow

GROWTH = 64 * 2**20  # bytes that 200 requests may add to what the first ones took


@pytest.fixture(scope="module")
def workdir(shapes_dir, tmp_path_factory, user_env):
    folder = tmp_path_factory.mktemp("run") / "demo"
    command = [sys.executable, "-m", "hfgd_jax.main", "--config=configs/demo.py:tiny", f"--workdir={folder}"]
    command += [f"--config.data.data_dir={shapes_dir}", "--config.train.steps=4"]
    subprocess.run(command, check=True, capture_output=True, env=user_env, timeout=300)
    return folder


@pytest.fixture(scope="module")
def images(shapes_dir):
    split = open_split(shapes_dir, "shapes", "val")
    return [split.example(index)["image"] for index in range(len(split))]


@pytest.fixture(scope="module")
def served(workdir, images, user_env):
    height, width = images[0].shape[:2]
    with started(f"--workdir={workdir}", f"--sizes={height}x{width}", env=user_env) as server:
        yield server


def test_two_hundred_requests_eight_at_a_time_are_all_answered_and_take_no_memory(served, images):
    bodies = [encoded(image, form) for image in images for form in ("JPEG", "PNG")]
    load(served, bodies, 32, 8)
    before = served.resident()
    done = load(served, bodies, 200, 8)
    assert done.statuses == {200: 200}
    assert served.resident() - before < GROWTH


def test_answers_under_load_are_those_of_predict(served, workdir, images, user_env, tmp_path):
    """Whoever else asks meanwhile: the masks of the files, pixel by pixel."""
    (tmp_path / "in").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "in" / f"{number}.png")
    command = [sys.executable, "-m", "hfgd_jax.main", f"--workdir={workdir}", "--mode=predict"]
    command += ["--checkpoint=best", f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}"]
    subprocess.run(command, check=True, capture_output=True, env=user_env, timeout=300)
    for number, image in enumerate(images):
        status, content = served.post(encoded(image))
        want = np.asarray(Image.open(tmp_path / "out" / "masks" / f"{number}.png"))
        got = np.asarray(Image.open(io.BytesIO(content)))
        assert status == 200
        np.testing.assert_array_equal(got, want)


def test_fifty_hostile_uploads_are_refused_and_cost_no_memory(served, images):
    before, cases = served.resident(), list(HOSTILE.values())
    cases.append((bytes(40 * 2**20), "image/png", 413))
    for content, kind, status in itertools.islice(itertools.cycle(cases), 50):
        answer = served.post(content, kind, JSON)
        assert answer[0] == status and b'"error"' in answer[1]
    assert served.resident() - before < GROWTH
    assert served.post(encoded(images[0]))[0] == 200
    assert not [line for line in served.lines if "Traceback" in line]


def test_ctrl_c_ends_it(served):
    begun = time.monotonic()
    assert served.end() == 130
    assert time.monotonic() - begun < 8
    time.sleep(0.2)
    assert "SIGINT: ending\n" in served.lines
