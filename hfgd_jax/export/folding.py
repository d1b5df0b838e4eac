"""Batch normalisation folded into the convolution before it: the same function, with fewer operations.

At inference a batch normalisation is `x * factor + shift` with numbers that no longer change. Where x is a
convolution's output as it is, the factor goes into the kernel, and of the norm one bias a channel remains.
Which norms these are is read off the model as it runs, by whose output a norm is given. Layer norms, and
batch norms after anything else than a convolution, stay.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from hfgd_jax.models.layers import Conv, DepthwiseConv, PatchConv

Path = tuple[str, ...]  # of a module, from the model
_CONVOLUTIONS = (Conv, DepthwiseConv, PatchConv, nn.Dense)  # their kernels' last axis is the output's


class Target(NamedTuple):
    """The convolution that a norm goes into, by its path, and the norm's epsilon."""

    conv: Path
    epsilon: float


def find_pairs(function: Callable[..., Any], *args: Any) -> dict[Path, Target]:
    """Batch norms, by their path, that can be folded. `function` applies a flax model; nothing is computed.

    A convolution that is called more than once keeps its norms.
    """
    made: list[tuple[Any, Path]] = []  # holds on to the outputs: an `is` below compares living things
    pairs: dict[Path, Target] = {}

    def watch(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        module = context.module
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        if isinstance(module, nn.BatchNorm):
            for path in (path for output, path in made if output is args[0]):
                pairs[module.path] = Target(path, module.epsilon)
        output = call(*args, **kwargs)
        if isinstance(module, _CONVOLUTIONS):
            made.append((output, module.path))
        return output

    def watched(*args: Any) -> Any:
        with nn.intercept_methods(watch):
            return function(*args)

    jax.eval_shape(watched, *args)
    calls = [path for _, path in made]
    return {norm: target for norm, target in pairs.items() if calls.count(target.conv) == 1}


def fold(variables: Mapping[str, Any], pairs: Mapping[Path, Target]) -> dict[str, Any]:
    """Variables with the norms of `pairs` folded, for a model that runs `with_folded_norms`.

    Args:
        variables: `params` and `batch_stats`, float32 numpy arrays; left as they are.
        pairs: of `find_pairs`.

    Returns:
        Float32; of a folded norm only `bias` is left.
    """
    params, stats = (dict(flatten_dict(variables[name])) for name in ("params", "batch_stats"))
    for norm, (conv, epsilon) in pairs.items():
        mean, variance = (stats.pop((*norm, name)).astype(np.float64) for name in ("mean", "var"))
        factor = params.pop((*norm, "scale")).astype(np.float64) / np.sqrt(variance + epsilon)
        params[*norm, "bias"] = (params[*norm, "bias"] - mean * factor).astype(np.float32)
        for leaf in ("kernel", "bias"):
            if (*conv, leaf) in params:
                params[*conv, leaf] = (params[*conv, leaf] * factor).astype(np.float32)
    return {"params": unflatten_dict(params), "batch_stats": unflatten_dict(stats)}


def with_folded_norms(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
    """For `nn.intercept_methods`: a batch norm without statistics adds its bias, in float32."""
    module = context.module
    folded = isinstance(module, nn.BatchNorm) and not module.has_variable("batch_stats", "mean")
    if not folded or context.method_name != "__call__":
        return call(*args, **kwargs)
    bias = module.get_variable("params", "bias")
    return (args[0].astype(jnp.float32) + bias.astype(jnp.float32)).astype(module.dtype)
