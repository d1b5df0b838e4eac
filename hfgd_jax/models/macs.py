"""Counts the multiply-accumulates of a traced function: its convolutions and matrix products.

The paper's Table 9 calls these "GFLOPs".
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core

# Primitives that run their inner function once.
_ONCE = frozenset(
    {
        "jit",
        "pjit",
        "closed_call",
        "core_call",
        "custom_jvp_call",
        "custom_vjp_call",
        "custom_vjp_call_jaxpr",
        "checkpoint",
        "remat",
        "remat2",
    }
)


def count(function: Callable, *args: Any) -> dict[str, int]:
    """Traces `function(*args)` and counts the multiply-accumulates of each scope; computes nothing.

    A convolution counts as dense: padded positions count, the holes of a dilated kernel do not. Bias,
    normalisation, softmax and other element-wise work does not count. A loop of fixed length counts each
    turn; of a conditional the most expensive branch counts.

    Args:
        function: anything that `jax.make_jaxpr` can trace.
        *args: arrays or `jax.ShapeDtypeStruct`, in any pytree.

    Returns:
        Scope to count. A scope is the path of flax modules and `jax.named_scope`s around the operation,
        such as `Segmenter/backbone/conv1`.

    Raises:
        ValueError: the function holds matrix products whose number is unknown when tracing, as in a loop
            that runs until a condition holds.
    """
    totals: dict[str, int] = {}
    for scope, macs in _walk(jax.make_jaxpr(function)(*args).jaxpr, ()):
        totals[scope] = totals.get(scope, 0) + macs
    return totals


def by_part(counts: Mapping[str, int], parts: Sequence[str]) -> dict[str, int]:
    """Sums the counts by the outermost of `parts` in each scope; the rest, if any, is `other`."""
    totals = dict.fromkeys(parts, 0)
    for scope, macs in counts.items():
        part = next((step for step in scope.split("/") if step in totals), "other")
        totals[part] = totals.get(part, 0) + macs
    return totals


def _walk(jaxpr: core.Jaxpr, outer: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        scope = (*outer, *filter(None, [str(eqn.source_info.name_stack)]))
        if name == "conv_general_dilated":
            yield "/".join(scope), _convolution(eqn)
        elif name == "dot_general":
            yield "/".join(scope), _product(eqn)
        elif name == "scan":
            for inner, macs in _walk(eqn.params["jaxpr"].jaxpr, scope):
                yield inner, macs * eqn.params["length"]
        elif name == "cond":
            branches = [list(_walk(branch.jaxpr, scope)) for branch in eqn.params["branches"]]
            yield from max(branches, key=lambda found: sum(macs for _, macs in found))
        else:
            found = [item for inner in _inner(eqn.params) for item in _walk(inner, scope)]
            if (found and name not in _ONCE) or name.startswith(("ragged_dot", "dot_product_attention")):
                raise ValueError(
                    f"{'/'.join(scope) or 'function'}: cannot count the matrix products of {name!r}"
                )
            yield from found


def _inner(params: Mapping[str, Any]) -> Iterator[core.Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def _convolution(eqn: core.JaxprEqn) -> int:
    kernel = eqn.invars[1].aval.shape
    _, inputs, *window = eqn.params["dimension_numbers"].rhs_spec
    per_output = kernel[inputs] * math.prod(kernel[i] for i in window)  # inputs: of one group
    return math.prod(eqn.outvars[0].aval.shape) * per_output // math.prod(eqn.params["lhs_dilation"])


def _product(eqn: core.JaxprEqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return math.prod(eqn.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
