"""Where class tokens start, and that every class can win there (docs/readings.md)."""

import jax
import numpy as np
import pytest

from hfgd_jax.models.guidance import ClassTokens
from hfgd_jax.tools.reachability import cosines, smallest_features


def draw(seed: int, channels: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    params = ClassTokens(channels, classes).init(jax.random.key(seed))["params"]
    return np.asarray(params["kernel"]), np.asarray(params["bias"])


@pytest.mark.parametrize(("channels", "classes"), [(256, 59), (96, 11)])
def test_tokens_start_glorot_uniform_and_apart(channels, classes):
    kernel, bias = draw(0, channels, classes)
    limit = np.sqrt(6 / (channels + classes))
    assert np.abs(kernel).max() <= limit and not bias.any()
    np.testing.assert_allclose(np.linalg.norm(kernel, axis=0), limit * np.sqrt(channels / 3), rtol=0.2)
    others = cosines(kernel)[~np.eye(classes, dtype=bool)]
    assert np.abs(others).max() < 5 / np.sqrt(channels)


@pytest.mark.parametrize("signed", [False, True])
def test_at_the_start_every_class_can_win_with_a_small_feature(signed):
    """Of the size that a normalised feature has (an l1 norm of about 0.8 a channel, 0.4 after a ReLU)."""
    kernel, bias = draw(1, 96, 21)
    assert smallest_features(kernel, bias, signed=signed).max() < 0.1 * 96


def test_signed_features_reach_classes_that_others_do_not():
    """Independent tokens: every class can win if the feature may be negative, whatever the tokens."""
    kernel = np.abs(np.random.default_rng(0).normal(size=(8, 4))) + 1
    kernel[:, 1] = kernel[:, 0] - 0.5  # below class 0 in every channel
    assert np.isinf(smallest_features(kernel, np.zeros(4), signed=False)[1])
    assert np.isfinite(smallest_features(kernel, np.zeros(4), signed=True)).all()
