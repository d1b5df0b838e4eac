import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hfgd_jax.models.backbones.stochastic import draw, drop_path, drop_path_rates


def test_samples_are_kept_whole_or_dropped_whole_at_the_rate():
    x = jnp.ones((4096, 2, 3))
    y = np.asarray(drop_path(x, 0.3, jax.random.key(0)))
    assert np.ptp(y.reshape(4096, -1), axis=1).max() == 0
    values = np.unique(y)
    np.testing.assert_allclose(values, [0, 1 / 0.7], rtol=1e-6)
    assert abs((y[:, 0, 0] == 0).mean() - 0.3) < 0.03
    assert abs(y.mean() - 1) < 0.05


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rate_zero_is_the_identity_even_when_traced(dtype):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((16, 5)), dtype)
    y = jax.jit(drop_path)(x, 0.0, jax.random.key(1))
    assert y.dtype == dtype
    np.testing.assert_array_equal(np.asarray(y, np.float32), np.asarray(x, np.float32))


def test_rates_rise_linearly_to_the_given_one():
    np.testing.assert_allclose(drop_path_rates(4, 0.3), [0, 0.1, 0.2, 0.3])
    assert drop_path_rates(1, 0.3) == (0.0,)


class Drawing(nn.Module):
    @nn.compact
    def __call__(self, rates, train):
        return draw(self, rates, train)


def test_a_key_is_drawn_only_where_something_is_to_be_dropped():
    module = Drawing()
    assert module.apply({}, (0.0, 0.5), False) is None
    assert module.apply({}, (0.0, 0.0), True) is None
    drops = module.apply({}, (0.0, 0.5), True, rngs={"stochastic": jax.random.key(2)})
    np.testing.assert_allclose(drops.rate, [0, 0.5])
    first, second = jax.random.key_data(drops.key)
    assert (first != second).any()
