"""A tiny run's config, a state and a batch of noise, for tests of the step and of the loop."""

import jax
import jax.numpy as jnp
import numpy as np

from hfgd_jax import config as configuration
from hfgd_jax.runs.system import abstract_state


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


def randomize(shapes, seed=0):
    """Variables of these shapes: He-scaled kernels, scales and variances around one, the rest small."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name, normal = path[-1].key, rng.standard_normal(leaf.shape)
        if name == "kernel":
            value = normal * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        elif name in ("scale", "var"):
            value = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            value = 0.1 * normal
        return jnp.asarray(value, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def random_state(system):
    """A state of random variables on the system's mesh, without compiling an initialisation."""
    abstract = abstract_state(system)
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)
    state = state.replace(**randomize(abstract.variables), rng=np.asarray(jax.random.PRNGKey(0)))
    return jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, abstract))


def assert_identical(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), one, other)
