"""Similarities of class tokens, by hand; the cosines are tested where `reachability` uses them."""

import numpy as np

from hfgd_jax.figures import tokens


def test_a_row_is_what_the_classifier_says_of_a_token():
    # Tokens (1, 0), (0, 2) and (1, 0): products with the first are 1, 0, 1; with the second 0, 4, 0.
    found = tokens.dependencies(np.float32([[1, 0, 1], [0, 2, 0]]))
    assert found.dtype == np.float64
    first = np.exp([1, 0, 1]) / np.exp([1, 0, 1]).sum()
    second = np.exp([0, 4, 0]) / np.exp([0, 4, 0]).sum()
    np.testing.assert_allclose(found, [first, second, first], atol=1e-12)
    # Large tokens do not overflow.
    np.testing.assert_allclose(tokens.dependencies(100 * np.eye(3)), np.eye(3), atol=1e-12)
