"""A tiny run's config and a batch of noise, for tests of the step and of the loop."""

import jax
import numpy as np

from hfgd_jax import config as configuration


def tiny_config(data_dir, method="hfgd", **fields):
    config = configuration.default()
    configuration.set_method(config, method)
    configuration.set_tiny(config)
    config.data.data_dir = str(data_dir)
    config.optim.learning_rate = 1e-3
    config.mesh.data = 1
    config.update_from_flattened_dict(fields)
    return config


def random_batch(size, crop=(65, 65), classes=9, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, (size, *crop)).astype(np.uint8)
    label[:, :9] = 255
    return {"image": rng.integers(0, 256, (size, *crop, 3)).astype(np.uint8), "label": label}


def assert_identical(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), one, other)
