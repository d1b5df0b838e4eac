"""The inference function of an export: what it reads, norms folded, open sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax import export as jax_export
from tiny_exports import pictures, random_variables, tiny

from hfgd_jax.export import exporter, folding, program
from hfgd_jax.export.program import Program, flatten
from hfgd_jax.geometry import resize

pytestmark = pytest.mark.usefixtures("shallow")
IMAGE = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.uint8)


@pytest.mark.parametrize(
    ("backbone", "changes", "folded"),
    [
        ("resnet18", {}, {"backbone", "context", "upsampler", "axial_attention"}),
        ("convnext_a", {"context": "identity"}, {"context", "upsampler", "axial_attention"}),
    ],
)
def test_folding_keeps_the_function(backbone, changes, folded):
    """Every batch norm goes, layer norms stay, and so do the logits."""
    config = tiny(backbone, **changes)
    variables = random_variables(config)
    made = Program(config, "float32")
    plain, fewer = (made.read(variables, fold_batch_norm=fold) for fold in (False, True))
    pairs = folding.find_pairs(made.logits, flatten(variables), IMAGE)
    norms = {path[:-1] for path in flatten_dict(variables["batch_stats"])}
    assert pairs.keys() == norms
    assert {path[0] for path in pairs} == folded
    assert not any(name.startswith("batch_stats/") for name in fewer)
    assert len(plain) - len(fewer) == 3 * len(norms)
    layer_norms = {k for k in plain if k.endswith("norm/scale") and (*k.split("/")[1:-1],) not in norms}
    assert layer_norms <= fewer.keys()
    logits = jax.jit(made.logits)
    images = pictures(2, 65, 65)
    one, other = logits(plain, images), logits(fewer, images)
    assert np.abs(one).max() > 1e-2
    np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(one).max())


def test_a_norm_of_two_things_is_not_folded():
    """A shared convolution, and a norm after a sum, keep their norms."""

    class Odd(folding.nn.Module):
        @folding.nn.compact
        def __call__(self, x):
            norm = lambda name: folding.nn.BatchNorm(use_running_average=True, name=name)  # noqa: E731
            shared = folding.nn.Dense(4, name="shared")
            x = norm("second")(shared(norm("first")(shared(x))))
            return norm("alone")(folding.nn.Dense(4, name="dense")(norm("sum")(x + 1)))

    model, x = Odd(), jnp.zeros((1, 4))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    assert folding.find_pairs(model.apply, variables, x).keys() == {("alone",)}


def test_uses_tells_what_is_read_and_how():
    def function(weights, x):
        dead = weights["dead"] @ x  # noqa: F841
        return weights["rounded"].astype(jnp.bfloat16) + x, weights["both"] + weights["both"].astype(
            jnp.bfloat16
        )

    weights = {name: jnp.ones(2) for name in ("dead", "rounded", "both", "unread")}
    found = program.uses(function, weights, jnp.ones(2, jnp.bfloat16))
    assert found == {
        "rounded": {jnp.dtype("bfloat16")},
        "both": {jnp.dtype("bfloat16"), jnp.dtype("float32")},
    }


@pytest.mark.parametrize(
    ("backbone", "changes"),
    [
        ("resnet18", {"context": "ppm", "output_stride": 2}),
        ("resnet18", {"context": "ocr", "upsampler": "fapn"}),
        ("resnet18", {"context": "sa_car", "upsampler": "sfpn"}),
        ("resnet18", {"context": "aspp", "upsampler": "deeplabv3plus", "backbone__output_stride": 8}),
        ("swin_t", {"context": "ppm", "upsampler": "upernet"}),
    ],
)  # fmt: skip
def test_every_part_traces_at_open_sizes(backbone, changes):
    made = Program(tiny(backbone, **changes), "bfloat16")
    b, h, w = jax_export.symbolic_shape("b, h, w", constraints=("h >= 1", "w >= 1"))
    extra = 1 if made.geometry == "align_corners" else 0
    images = jax.ShapeDtypeStruct((b, 32 * h + extra, 32 * w + extra, 3), jnp.uint8)
    logits = jax.eval_shape(made.logits, made.abstract, images)
    per = 32 // made.output_stride
    assert str(logits.shape[:2]).startswith(f"(b, {per}*h") and logits.dtype == jnp.float32


def test_open_sizes_compute_what_known_ones_do():
    """Where an open size takes another way (pooling, windows, resizing), and with norms folded."""
    config = tiny("swin_t", context="ppm", upsampler="upernet")
    made, variables = Program(config, "float32"), random_variables(config)
    weights = made.read(variables, fold_batch_norm=True)
    assert not any(name.startswith("batch_stats/") for name in weights)
    assert "params/backbone/stage1_1/norm1/scale" in weights
    call = jax.jit(made.lower(weights).call)
    images, rows, columns = pictures(2, 96, 160), *(np.arange(n, dtype=np.float32) for n in (90, 160))
    mask, logits = call(weights, images, rows, columns)
    wanted = exporter.evaluated(config, variables)(images)[:, :90]
    assert np.abs(logits - wanted).max() < 2e-5 * np.abs(wanted).max()
    np.testing.assert_array_equal(mask, logits.argmax(-1))


@pytest.mark.parametrize("geometry", ["align_corners", "half_pixel"])
def test_an_open_resize_is_the_known_one(geometry):
    h, w = jax_export.symbolic_shape("h, w")
    x = np.random.default_rng(0).normal(size=(1, 5, 6, 2)).astype(np.float32)

    def function(x, like):
        return resize(jnp.asarray(x), like.shape, geometry=geometry)

    made = jax_export.export(jax.jit(function))(
        jax.ShapeDtypeStruct((1, 5, w, 2), jnp.float32), jax.ShapeDtypeStruct((h, w + 3), jnp.uint8)
    )
    for size in ((7, 9), (3, 9), (1, 9), (21, 9)):
        like = np.zeros(size, np.uint8)
        np.testing.assert_allclose(made.call(x, like), function(x, like), atol=2e-6)
