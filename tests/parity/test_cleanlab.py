"""Label quality against the package whose definition it is."""

import numpy as np
import pytest

from hfgd_jax.report.quality import softmin_score

rank = pytest.importorskip("cleanlab.segmentation.rank")


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_softmin_score_is_cleanlabs(temperature):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (3, 9, 7))
    probabilities = rng.dirichlet(np.full(4, 0.5), (3, 9, 7)).transpose(0, 3, 1, 2)
    scores, given = rank.get_label_quality_scores(
        labels, probabilities, method="softmin", temperature=temperature, verbose=False
    )
    ours = [softmin_score(one.ravel().astype(np.float32), temperature) for one in given]
    np.testing.assert_allclose(ours, scores, rtol=1e-5)
