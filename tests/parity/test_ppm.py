"""Adaptive pooling and the way back from its bins against torch's own."""

import jax.numpy as jnp
import pytest

torch = pytest.importorskip("torch", reason="the comparisons with torch need the extra [parity]")

from hfgd_jax.geometry import resize  # noqa: E402
from hfgd_jax.models.context.ppm import BINS, adaptive_average_pool  # noqa: E402


@pytest.mark.parametrize("size", [(17, 17), (12, 16), (33, 4), (1, 5)])
def test_pooling_and_resizing_back(size, parity):
    """Sizes that the bins divide, sizes that they do not, and fewer samples than bins."""
    x = parity.random_image(*size, batch=2)
    nhwc = lambda tensor: tensor.permute(0, 2, 3, 1)  # noqa: E731
    theirs = torch.tensor(x.transpose(0, 3, 1, 2).copy())
    for bins in BINS:
        pooled = adaptive_average_pool(jnp.asarray(x), bins)
        expected = torch.nn.AdaptiveAvgPool2d(bins)(theirs)
        assert parity.relative_error(pooled, nhwc(expected)) < 1e-6
        for geometry in ("align_corners", "half_pixel"):
            back = torch.nn.functional.interpolate(
                expected, size, mode="bilinear", align_corners=geometry == "align_corners"
            )
            assert parity.relative_error(resize(pooled, size, geometry=geometry), nhwc(back)) < 1e-5
