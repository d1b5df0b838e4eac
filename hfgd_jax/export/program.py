"""The inference function that an export holds, what it reads of a model's variables, and its lowering.

`Program` is a function of plain arrays: weights by name, uint8 images on the model's grid, and the rows and
columns at which masks are wanted. Its weights are arguments, not constants, so that the lowered module is
small whatever the model's size.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export
from jax.extend import core
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from hfgd_jax.export import folding
from hfgd_jax.inference import views
from hfgd_jax.inference.sliding import COARSEST
from hfgd_jax.models import build_model

PLATFORMS = ("cpu", "cuda", "tpu")
Weights = Mapping[str, Any]  # arrays by their path, such as `params/backbone/conv1/kernel`


class Program:
    """Inference of a run's model, in one dtype, at one scale, of whole images.

    Attributes:
        abstract: shapes of all variables of the model, by name, as training has them.
        geometry: of the model's grid.
        output_stride: pixels of the image from one logit of the model to the next.
        dtype: of the computation. float32 is computed as such on every platform (some would otherwise
            shorten the factors of matrix products).
    """

    def __init__(self, config: ConfigDict, dtype: str):
        config = config.copy_and_resolve_references()
        # Neither changes what is computed; with either, kernels are not converted first of all (see `uses`).
        config.model.backbone.update({"scan_blocks": False, "remat": False})
        self.model = build_model(config.model, config.data.num_classes, dtype)
        self.geometry, self.output_stride = config.model.geometry, config.model.output_stride
        self.dtype = jnp.dtype(dtype)
        image = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.uint8)
        variables = jax.eval_shape(
            lambda key, x: self.model.init(key, x, train=True), jax.random.key(0), image
        )
        self.abstract = flatten(variables)
        self._extra = 1 if self.geometry == "align_corners" else 0

    def __call__(
        self,
        weights: Weights,
        images: UInt8[Array, "b H W 3"],
        rows: Float[Array, " r"],
        columns: Float[Array, " c"],
    ) -> tuple[UInt8[Array, "b r c"], Float[Array, "b r c k"]]:
        """Masks and float32 logits at chosen places.

        Args:
            weights: of `read`, or more; with norms folded or as they were.
            images: RGB; sides of the form 32k + 1 (align_corners) or 32k (half_pixel).
            rows, columns: float32, where the masks are wanted, in pixels of the images; what is beyond an
                image is taken at its edge.
        """
        logits = self.logits(weights, images)
        for axis, position in ((0, rows), (1, columns)):
            length = jnp.full((images.shape[0], 1), images.shape[1 + axis], jnp.float32)
            logits = views.sample(
                logits,
                axis,
                jnp.broadcast_to(position, (images.shape[0], position.shape[0])),
                length,
                output_stride=self.output_stride,
                geometry=self.geometry,
            )
        return jnp.argmax(logits, -1).astype(jnp.uint8), logits

    def logits(self, weights: Weights, images: UInt8[Array, "b H W 3"]) -> Float[Array, "b h w k"]:
        """Float32 logits at the output stride. Parameters that are not in `weights` are not read."""
        absent = {
            name: jnp.zeros(leaf.shape, leaf.dtype)
            for name, leaf in self.abstract.items()
            if name.startswith("params/") and name not in weights
        }
        variables = unflatten_dict({**absent, **weights}, sep="/")
        precision = "highest" if self.dtype == jnp.float32 else None
        with nn.intercept_methods(folding.with_folded_norms), jax.default_matmul_precision(precision):
            return self.model.apply(variables, images, train=False).logits

    def read(self, variables: Mapping[str, Any], *, fold_batch_norm: bool) -> dict[str, np.ndarray]:
        """The weights that inference reads, by name, each in the dtype in which it is used.

        Args:
            variables: `params` and `batch_stats` of a trained model, numpy arrays.
            fold_batch_norm: fold the norms into the convolutions before them (see `folding`).

        Returns:
            float32 as trained, and bfloat16 where the computation would round a leaf to it before all else.
        """
        if fold_batch_norm:
            arguments = flatten(variables), jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.uint8)
            variables = folding.fold(variables, folding.find_pairs(self.logits, *arguments))
        weights = flatten(variables)
        used = uses(self.logits, weights, jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.uint8))
        return {
            name: np.asarray(weights[name]).astype(self.dtype if only == {self.dtype} else np.float32)
            for name, only in used.items()
        }

    def lower(self, weights: Weights) -> export.Exported:
        """Lowers the function for all `PLATFORMS`, with the batch, both sides and both outputs left open."""
        batch, height, width, rows, columns = export.symbolic_shape(
            "b, h, w, r, c", constraints=("h >= 1", "w >= 1")
        )
        sides = (COARSEST * height + self._extra, COARSEST * width + self._extra)
        return export.export(jax.jit(self.__call__), platforms=PLATFORMS)(
            {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in weights.items()},
            jax.ShapeDtypeStruct((batch, *sides, 3), jnp.uint8),
            jax.ShapeDtypeStruct((rows,), jnp.float32),
            jax.ShapeDtypeStruct((columns,), jnp.float32),
        )


def flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by name: the keys on the way to them, with slashes between."""
    return dict(sorted(flatten_dict(variables, sep="/").items()))


def uses(function: Callable[..., Any], weights: Weights, *args: Any) -> dict[str, set[Any]]:
    """What `function(weights, *args)` reads of its weights; is traced, nothing is computed.

    Returns:
        The weights that its outputs depend on, each with the dtypes that it is converted to before anything
        else is done with it; its own dtype stands for every other use.
    """
    jaxpr = jax.make_jaxpr(function)(weights, *args).jaxpr
    live, found = set(_variables(jaxpr.outvars)), {}
    for eqn in reversed(jaxpr.eqns):
        if live.isdisjoint(eqn.outvars):
            continue
        for variable in _variables(eqn.invars):
            live.add(variable)
            converts = eqn.primitive.name == "convert_element_type"
            use = eqn.params["new_dtype"] if converts else variable.aval.dtype
            found.setdefault(variable, set()).add(jnp.dtype(use))
    for variable in _variables(jaxpr.outvars):
        found.setdefault(variable, set()).add(variable.aval.dtype)
    names = sorted(weights)  # the order in which jax takes a dictionary apart
    return {
        name: found[variable]
        for name, variable in zip(names, jaxpr.invars, strict=False)
        if variable in found
    }


def _variables(atoms: Any) -> Iterator[core.Var]:
    return (atom for atom in atoms if not isinstance(atom, core.Literal))
