"""hfgd_jax.tools.reachability: the smallest features that win, by hand, and the report of a run."""

import json

import jax
import numpy as np
import pytest
from etils import epath
from tiny_runs import tiny_config

from hfgd_jax.data.labels import TABLES
from hfgd_jax.runs import system
from hfgd_jax.tools import import_weights, reachability


@pytest.mark.parametrize(
    ("kernel", "bias", "free", "positive"),
    [
        # Two orthogonal tokens: x1 - x2 >= 1, at (1, 0) or, signed, (1/2, -1/2): an l1 norm of 1 either way.
        ([[1, 0], [0, 1]], [0, 0], [1, 1], [1, 1]),
        # Longer tokens need smaller features; a bias of 1 gives the first class its margin for nothing.
        ([[2, 0], [0, 4]], [1, 0], [0, 0.5], [0, 0.5]),
        # The third is shorter than both others: x1 <= -1 and x2 <= -1, so only a signed feature wins.
        ([[1, 0, 0], [0, 1, 0]], [0, 0, 0], [1, 1, 2], [1, 1, np.inf]),
        # It is halfway between the others: (0, 0) and (2, 2) never both lose to (1, 1), whatever x.
        ([[2, 0, 1], [2, 0, 1]], [0, 0, 0], [1, 1, np.inf], [1, np.inf, np.inf]),
    ],
)
def test_smallest_features_by_hand(kernel, bias, free, positive):
    for signed, expected in ((True, free), (False, positive)):
        found = reachability.smallest_features(np.float32(kernel), np.float32(bias), signed=signed)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, atol=1e-9)


def test_bad_tokens_raise():
    with pytest.raises(ValueError, match=r"kernel \(2, 3\) and bias \(2,\)"):
        reachability.smallest_features(np.zeros((2, 3)), np.zeros(2), signed=True)
    with pytest.raises(ValueError, match="not finite"):
        reachability.smallest_features(np.full((2, 3), np.nan), np.zeros(3), signed=True)


def test_cosines_of_tokens():
    found = reachability.cosines(np.float32([[3, 4, 0], [4, 3, 0]]))
    np.testing.assert_allclose(found, [[1, 0.96, 0], [0.96, 1, 0], [0, 0, 0]], atol=1e-12)


def test_the_report():
    third_below = np.float32([[1, 0, 0], [0, 1, 0]])
    signed = {"student": True, "teacher": False}
    one = reachability.TrainedTokens("hfgd", 4, ("a", "b", "c"), third_below, np.zeros(3), signed)
    two = reachability.TrainedTokens("sfpn", 4, ("a", "d"), np.eye(2), np.zeros(2), {"student": False})
    found = [reachability.examine(one), reachability.examine(two)]
    assert found[0]["smallest_features"]["teacher"] == {
        "signed": False,
        "l1": {"a": 1.0, "b": 1.0, "c": None},
    }
    assert json.loads(reachability.render(found, "json")) == found
    assert reachability.render(found, "markdown").splitlines() == [
        "| smallest l1 norm | hfgd, signed | hfgd teacher, x >= 0 | sfpn, x >= 0 |",
        "| --- | ---: | ---: | ---: |",
        "| a | 1.00 | 1.00 | 1.00 |",
        "| b | 1.00 | 1.00 | n/a |",
        "| c | 2.00 | out of reach | n/a |",
        "| d | n/a | n/a | 1.00 |",
        "",
        "| token's norm | hfgd | sfpn |",
        "| --- | ---: | ---: |",
        "| a | 1.00 | 1.00 |",
        "| b | 1.00 | n/a |",
        "| c | 0.00 | n/a |",
        "| d | n/a | 1.00 |",
        "| mean cosine | 0.00 | 0.00 |",
        "| largest cosine | 0.00 | 0.00 |",
    ]


def test_the_tokens_of_a_run(tmp_path, light_backbone):
    config = tiny_config(tmp_path, "sfpn")
    whole, rng = system.build(config), np.random.default_rng(0)
    shapes = jax.eval_shape(system.make_init(whole), jax.random.PRNGKey(0)).model
    variables = jax.tree.map(lambda s: rng.random(s.shape, np.float32), shapes)
    import_weights.write_run(epath.Path(tmp_path / "run"), whole, variables, TABLES["shapes"])
    run = reachability.read(str(tmp_path / "run"), "latest")
    assert (run.label, run.step, run.signed) == ("run", 0, {"student": False})
    np.testing.assert_array_equal(run.kernel, variables["params"]["class_tokens"]["kernel"])
    np.testing.assert_array_equal(run.bias, variables["params"]["class_tokens"]["bias"])
    assert run.classes == tuple(TABLES["shapes"].classes)


def test_the_teacher_is_examined_where_it_shares_the_tokens(tmp_path):
    for signed, expected in (("student", False), ("both", True)):
        config = tiny_config(tmp_path, "hfgd", **{"model.guidance.signed": signed})
        assert reachability.branches(config.model) == {"student": True, "teacher": expected}
