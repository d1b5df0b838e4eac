"""The Python API: every example of its docstrings, of docs/api.md and of the README; images of every kind."""

import doctest
import functools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hfgd_jax
from hfgd_jax import api
from hfgd_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("light_backbone_everywhere")
ROOT = Path(__file__).resolve().parents[1]
SHAPE = (45, 70)


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """The examples train on one device, as a user's CPU has; the tests have eight."""
    load = hfgd_jax.configs.load

    @functools.wraps(load)
    def load_for_one(*names, **arguments):
        if names == ("demo",):
            arguments.setdefault("method", "fcn")  # compiles in half the time
        config = load(*names, **arguments)
        config.mesh.data = 1
        config.train.steps = 2
        return config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hfgd_jax.configs, "load", load_for_one)
        yield


@pytest.fixture(scope="module")
def run(one_device, shapes_dir, tmp_path_factory):
    """A run of two steps."""
    run = tmp_path_factory.mktemp("api") / "run"
    config = hfgd_jax.configs.load("demo", tiny=True)
    config.data.data_dir = str(shapes_dir)
    hfgd_jax.train(config, run)
    return run


def test_the_examples_of_the_docstrings_run(shapes_dir, tmp_path, monkeypatch):
    """In the order in which a user needs them."""
    names = {"hfgd_jax": hfgd_jax, "np": np, "run": tmp_path / "run", "data": shapes_dir}
    runner = doctest.DocTestRunner()
    for function in (hfgd_jax.configs.load, api.build_model, api.train, api.evaluate, api.load):
        examples = doctest.DocTestParser().get_doctest(
            function.__doc__, dict(names), function.__name__, None, None
        )
        assert examples.examples, f"{function.__name__}: no example"
        runner.run(examples)
    assert not runner.summarize().failed


@pytest.fixture(scope="module")
def model(run):
    return hfgd_jax.load(run, "latest")


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 255, (*SHAPE, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("page", ["README.md", "docs/api.md"])
def test_the_examples_of_a_page_run(page, run, photo, shapes_dir, tmp_path, monkeypatch):
    """At a tiny size, going on from the finished run; nothing else of the text is changed."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    text = (
        "\n".join(blocks)
        .replace('load("demo"', 'load("demo", tiny=True')
        .replace('method="hfgd"', 'method="fcn"')
        .replace(".steps = 300", ".steps = 2")
    )
    (tmp_path / "data").symlink_to(shapes_dir)
    shutil.copytree(run, tmp_path / "runs" / "demo")
    Image.open(photo).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(text, page, "exec"), names)
    assert names["prediction"].mask.shape == SHAPE


def test_a_model_takes_images_of_every_kind(model, photo):
    pixels = np.asarray(Image.open(photo))
    wanted = model(pixels)
    assert wanted.mask.dtype == np.uint8 and wanted.mask.shape == SHAPE
    kinds = [str(photo), photo, Image.open(photo)]
    for found in (*map(model, kinds), *model(kinds)):
        np.testing.assert_array_equal(found.mask, wanted.mask)
        np.testing.assert_array_equal(found.image, pixels)
    grey = model(pixels[..., 0])
    np.testing.assert_array_equal(grey.image, np.repeat(pixels[..., :1], 3, -1))
    assert model([pixels[:1, :1], pixels])[0].mask.shape == (1, 1) and model([]) == []
    probabilities = wanted.probabilities
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(-1), wanted.mask)
    assert sum(wanted.shares.values()) == pytest.approx(1)


def test_scales_and_flip_are_those_of_the_evaluation(model, photo):
    pixels = np.asarray(Image.open(photo))
    mirrored = model(pixels[:, ::-1], flip=True).probabilities[:, ::-1]
    np.testing.assert_allclose(model(pixels, flip=True).probabilities, mirrored, atol=1e-5)
    one, two = (model(pixels, scales=(scale,)).probabilities for scale in (0.5, 1.0))
    both = model(pixels, scales=(0.5, 1.0)).probabilities
    mean = np.sqrt(one * two)  # of logits
    np.testing.assert_allclose(both, mean / mean.sum(-1, keepdims=True), atol=1e-4)


def test_a_prediction_is_saved_as_mask_and_overlay(model, photo, tmp_path):
    prediction = model(photo)
    prediction.save(tmp_path / "new" / "mask.png")
    prediction.save(tmp_path / "overlay.png", "overlay")
    mask = Image.open(tmp_path / "new" / "mask.png")
    np.testing.assert_array_equal(np.asarray(mask), prediction.mask)
    assert mask.getpalette()[:3] == model.palette[0].tolist()
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "overlay.png")), prediction.overlay())


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda run, model: model(np.zeros((4, 4, 3))), r"image float64 \(4, 4, 3\): want uint8"),
        (lambda run, model: model(np.zeros((4, 4, 4), np.uint8)), r"\(4, 4, 4\): want uint8"),
        (lambda run, model: model(np.zeros(4, np.uint8)), r"uint8 \(4,\): want uint8"),
        (lambda run, model: model("missing.png"), r"missing\.png: .*No such file"),
        (lambda run, model: model(run / "config.json"), r"config\.json: no image of a format"),
        (lambda run, model: model(np.zeros((4, 4), np.uint8), scales=(0.0,)), r"eval\.scales"),
        (lambda run, model: hfgd_jax.load(run / "nothing"), "no such folder; want a run directory or"),
        (lambda run, model: hfgd_jax.load(run / "best"), "neither a run directory"),
        (lambda run, model: hfgd_jax.load(run, "77"), "77"),
        (lambda run, model: hfgd_jax.evaluate(run, split="tset"), "tset"),
        (lambda run, model: hfgd_jax.configs.load("camvit"), "'camvit': unknown; did you mean 'camvid'"),
        (lambda run, model: hfgd_jax.configs.load("camvid", metod="hfgd"), "metod"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(call, says, run, model):
    with pytest.raises(UserError, match=says) as error:
        call(run, model)
    assert "\n" not in str(error.value)


def test_importing_the_package_loads_nothing_large_and_defines_no_flags(user_env):
    code = (
        "import sys, hfgd_jax\n"
        "from hfgd_jax import configs\n"
        "assert not {'jax', 'numpy', 'absl', 'tensorflow', 'ml_collections'} & set(sys.modules)\n"
        "assert set(hfgd_jax.__all__) <= set(dir(hfgd_jax))\n"
        "hfgd_jax.load\n"
        "from absl import flags\n"
        "owners = map(flags.FLAGS.find_module_defining_flag, flags.FLAGS)\n"
        "print([owner for owner in owners if owner.startswith('hfgd')])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=user_env)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"
