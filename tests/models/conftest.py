"""Tiny models with random variables, without compiling an initialisation."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Literal
from tiny_runs import randomize

from hfgd_jax import config as configs
from hfgd_jax.models import build_model


@pytest.fixture(scope="session")
def model_tools():
    return SimpleNamespace(config=tiny_config, randomize=randomize, build=build, reached=reached)


@pytest.fixture(scope="session")
def naive():
    """Float64 NumPy versions of what the decoders' modules are made of."""
    return SimpleNamespace(conv_norm_relu=conv_norm_relu, resize=naive_resize, softmax=naive_softmax)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Compiled fast rather than to be fast."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def tiny_config(method=None, **changes):
    """A small config of `method` with dotted `model` fields changed (double underscores for dots)."""
    config = configs.default()
    configs.set_tiny(config)
    if method:
        configs.set_method(config, method)
    config.model.update_from_flattened_dict({key.replace("__", "."): v for key, v in changes.items()})
    configs.validate(config)
    return config


def build(model_config, num_classes=5, dtype="float32", seed=0):
    """A model and random variables for it."""
    model = build_model(model_config, num_classes, dtype)
    images = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.uint8)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    return model, randomize(shapes, seed)


def reached(losses, params):
    """Which parameters the gradient of each loss depends on; traced, nothing is compiled.

    Args:
        losses: a function of the parameters that returns `{name: scalar}`.
        params: arrays or their shapes.

    Returns:
        `{name: tree of bool}`. False: the gradient is zero whatever the numbers are.
    """

    def gradient(params, pulls):
        return jax.vjp(losses, params)[1](pulls)[0]

    pulls = jax.eval_shape(losses, params)
    jaxpr = jax.make_jaxpr(gradient)(params, pulls).jaxpr
    names = sorted(pulls)  # the order in which jax takes a dictionary apart
    sources = {var: {name} for var, name in zip(jaxpr.invars[-len(names) :], names, strict=True)}

    def of(atom):
        return set() if isinstance(atom, Literal) else sources.get(atom, set())

    for eqn in jaxpr.eqns:
        sources.update(dict.fromkeys(eqn.outvars, set().union(*map(of, eqn.invars))))
    by_loss = lambda name: [name in of(out) for out in jaxpr.outvars]  # noqa: E731
    return {name: jax.tree.unflatten(jax.tree.structure(params), by_loss(name)) for name in names}


def conv_norm_relu(variables, name, x, dilation=1, epsilon=1e-3):
    """The `ConvNormRelu` called `name`, in inference, on `[B, H, W, C]`; tap by tap."""
    params, stats = variables["params"][name], variables["batch_stats"][name]["norm"]
    kernel = np.asarray(params["conv"]["kernel"], np.float64)
    kernel = kernel[None, None] if kernel.ndim == 2 else kernel
    (h, w), reach = x.shape[1:3], len(kernel) // 2 * dilation
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    y = 0
    for i, j in np.ndindex(kernel.shape[:2]):
        y = y + padded[:, i * dilation : i * dilation + h, j * dilation : j * dilation + w] @ kernel[i, j]
    y = (y - stats["mean"]) / np.sqrt(np.asarray(stats["var"], np.float64) + epsilon)
    return np.maximum(y * params["norm"]["scale"] + params["norm"]["bias"], 0)


def naive_resize(x, size, geometry):
    """Bilinear, one sample of the result after the other."""
    for axis in (1, 2):
        n, m, samples = x.shape[axis], size[axis - 1], []
        for i in range(m):
            at = i * (n - 1) / max(m - 1, 1)
            if geometry == "half_pixel":
                at = min(max((i + 0.5) * n / m - 0.5, 0), n - 1)
            low = int(at)
            high = min(low + 1, n - 1)
            samples.append(x.take(low, axis) * (1 - at + low) + x.take(high, axis) * (at - low))
        x = np.stack(samples, axis)
    return x


def naive_softmax(x, axis):
    x = np.exp(x - x.max(axis, keepdims=True))
    return x / x.sum(axis, keepdims=True)
