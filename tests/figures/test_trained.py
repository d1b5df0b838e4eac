"""What is read of runs: names, and the features that the class tokens classify."""

import jax
import numpy as np
import pytest
from small_model import picture
from tiny_runs import random_state, tiny_config

from hfgd_jax.data.labels import TABLES
from hfgd_jax.errors import UserError
from hfgd_jax.figures import trained
from hfgd_jax.figures.features import Pixels
from hfgd_jax.inference.tiles import TiledPredictor
from hfgd_jax.inference.views import Inference
from hfgd_jax.runs import system


@pytest.mark.parametrize(("method", "scale"), [("hfgd", 1.0), ("fcn", 0.5)])
def test_features_are_what_the_tokens_classify(tmp_path, light_backbone, method, scale):
    """Their products with the tokens, which commute with sampling, are the logits of a prediction."""
    config = tiny_config(tmp_path, method, **{"data.input_scale": scale})
    built = system.build(config)
    variables = jax.device_get(random_state(built).model)
    run = system.Trained(built, variables, 0, TABLES["shapes"])
    images = [picture(50, 70), picture(60, 90, seed=1)]
    rng = np.random.default_rng(0)
    where = rng.integers(0, 2, 40)
    heights, widths = np.array([image.shape[:2] for image in images])[where].T
    rows, columns = rng.integers(0, heights), rng.integers(0, widths)
    pixels = Pixels(where, rows, columns, np.zeros(40, int))
    done = []
    found = trained.features(run, images, pixels, done.append)
    assert found.dtype == np.float32 and found.shape == (40, config.model.channels) and done == [1, 2]
    tokens = variables["params"]["class_tokens"]
    logits = found @ tokens["kernel"] + tokens["bias"]
    predictor = TiledPredictor(Inference(built.model, config), variables, built.mean_pixel)
    maps = [predictor.probabilities(image) for image in images]
    wanted = np.stack([maps[i][r, c] for i, r, c in zip(where, rows, columns, strict=True)])
    np.testing.assert_allclose(jax.nn.softmax(logits), wanted, atol=2e-5)
    assert wanted.std(axis=0).max() > 1e-3  # they differ from pixel to pixel
    for probabilities, mask in zip(maps, trained.masks(run, images), strict=True):
        np.testing.assert_array_equal(mask, probabilities.argmax(-1))


def test_runs_of_other_classes_are_refused():
    one, other = (system.Trained(None, {}, 0, TABLES[name]) for name in ("shapes", "camvid"))
    trained.check_alike({"a": one, "b": one})
    with pytest.raises(UserError, match=r"a and c were trained on other classes \(sky, water.*, sky, bu"):
        trained.check_alike({"a": one, "b": one, "c": other})


def test_runs_have_the_labels_or_as_much_of_their_folders_as_tells_them_apart():
    assert trained.names(["runs/a", "runs/b"], []) == ["a", "b"]
    assert trained.names(["x/one/seed0", "x/two/seed0"], []) == ["one/seed0", "two/seed0"]
    assert trained.names(["x/a", "x/b"], ["SFPN", "HFGD"]) == ["SFPN", "HFGD"]
    for workdirs, labels, message in (
        (["a", "b"], ["one"], "--labels=one: 1, but 2 --workdirs"),
        (["a", "b"], ["one", "one"], "--labels: 'one' twice"),
        (["a", "./a"], [], "--workdirs=a,./a: a folder twice"),
    ):
        with pytest.raises(UserError, match=message):
            trained.names(workdirs, labels)
