"""Sizes, dtypes and statistics of the assembled model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hfgd_jax import geometry as geo
from hfgd_jax.losses import total_loss
from hfgd_jax.models.guidance import classify
from hfgd_jax.models.upsamplers import UPSAMPLERS

GEOMETRIES = ("align_corners", "half_pixel")


@pytest.mark.parametrize("name", ["sfpn", "u_sfpn"])
@pytest.mark.parametrize("output_stride", [4, 2])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("first", [4, 8])
def test_upsampler_sizes(name, output_stride, geometry, first):
    """`first` is the stride of the last level: 8 is a dilated backbone."""
    size = geo.grid_size((95, 160), geometry)
    pyramid = {
        level: jnp.zeros((1, *geo.feature_size(size, min(level, 32 if first == 4 else 8), geometry), level))
        for level in (4, 8, 16, 32)
    }
    module = UPSAMPLERS[name](channels=6, output_stride=output_stride, geometry=geometry)
    low, variables = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), pyramid, False))
    assert low.shape == (1, *geo.feature_size(size, output_stride, geometry), 6)
    kernels = {
        key: value["conv"]["kernel"].shape for key, value in variables["params"].items() if "branch" in key
    }
    assert set(kernels.values()) == {(3, 3, 6, 6)}
    for level, convolutions in {4: 1, 8: 1, 16: 2, 32: 3}.items():
        found = sum(key.startswith(f"branch_{level}_") for key in kernels)
        assert found == convolutions + (output_stride == 2)
    lateral = variables["params"]["lateral_8"]["conv"]["kernel"].shape
    assert lateral == ((8, 6) if name == "sfpn" else (3, 3, 8, 6))


def test_upsampler_adds_up_its_branches(model_tools):
    """With laterals and branches as identities, constant levels add up as in a top-down path."""
    pyramid = {
        level: jnp.full((1, *geo.feature_size((65, 65), level, "align_corners"), 2), value)
        for level, value in ((4, 1.0), (8, 10.0), (16, 100.0), (32, 1000.0))
    }
    module = UPSAMPLERS["sfpn"](channels=2)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), pyramid, False))

    def identity(path, leaf):
        if path[-1].key != "kernel":
            return jnp.full(leaf.shape, float(path[-1].key in ("scale", "var")))
        eye = jnp.eye(2) * np.sqrt(1 + 1e-3)  # undoes the norm's epsilon
        return eye if leaf.ndim == 2 else jnp.zeros(leaf.shape).at[1, 1].set(eye)

    variables = jax.tree_util.tree_map_with_path(identity, shapes)
    low = module.apply(variables, pyramid, False)
    # Level 32 is 1000; 16 is 1100; 8 is 1110; 4 is 1111; the branches add up.
    np.testing.assert_allclose(low, 1000 + 1100 + 1110 + 1111, rtol=1e-5)


def prediction(model_tools, images, **changes):
    model, variables = model_tools.build(model_tools.config("hfgd", **changes).model)
    return jax.jit(lambda v, x: model.apply(v, x, train=False).logits)(variables, images), model, variables


@pytest.mark.parametrize("geometry, side", [("align_corners", 17), ("half_pixel", 16)])
def test_off_grid_images_are_padded_with_the_mean_pixel(geometry, side, model_tools, light_backbone):
    images = np.random.default_rng(0).integers(0, 256, (1, 50, 44, 3)).astype(np.uint8)
    logits, model, variables = prediction(model_tools, images, geometry=geometry)
    assert logits.shape == (1, side, side, 5) and logits.dtype == jnp.float32
    size = geo.grid_size((50, 44), geometry)
    padded = np.tile(np.asarray(model.mean, np.float32), (1, *size, 1))
    padded[:, :50, :44] = images
    again = jax.jit(lambda v, x: model.apply(v, x, train=False).logits)(variables, padded)
    np.testing.assert_allclose(logits, again, atol=1e-4 * float(jnp.abs(logits).max()))
    assert geo.to_pixels(logits, (50, 44), geometry=geometry).shape == (1, 50, 44, 5)


def test_a_bfloat16_step_is_float32_outside_and_finite_without_labels(model_tools, light_backbone):
    config = model_tools.config("hfgd")
    model, variables = model_tools.build(config.model, dtype="bfloat16")
    exact, _ = model_tools.build(config.model)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 65, 65, 3)).astype(np.uint8)
    labels = rng.integers(0, 5, (2, 65, 65)).astype(np.uint8)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))

    @jax.jit
    def step(variables, labels):
        def loss(params):
            outputs, updated = model.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            total, parts = total_loss(outputs, labels, config.loss, num_classes=5, geometry="align_corners")
            return total, (outputs, updated, parts)

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    (total, (outputs, updated, parts)), gradient = step(variables, labels)
    for tree in (total, outputs, updated, parts, gradient):
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(tree))
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))
    (total, (_, _, parts)), gradient = step(variables, np.full_like(labels, 255))
    assert np.isfinite(total) and parts["teacher"] == parts["student"] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient["upsampler"]))
    expected, _ = jax.jit(lambda v: exact.apply(v, images, train=True, mutable=["batch_stats"]))(variables)
    error = jnp.abs(outputs.guide_logits - expected.guide_logits).max() / jnp.abs(expected.guide_logits).max()
    assert error < 0.2
    mean = updated["batch_stats"]["context"]["wide"]["norm"]["mean"]
    assert np.any(mean != mean.astype(jnp.bfloat16)), "statistics were rounded to bfloat16"


def test_batch_statistics_follow_the_configured_decay(model_tools):
    """new = decay * old + (1 - decay) * batch."""
    images = np.random.default_rng(0).integers(0, 256, (2, 65, 65, 3)).astype(np.uint8)
    model, variables = model_tools.build(model_tools.config("fcn", batch_norm_decay=0.75).model)

    @jax.jit
    def update(variables):
        _, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return updated["batch_stats"]["backbone"]["bn1"]

    mean, std = (np.asarray(v, np.float64) for v in (model.mean, model.std))
    x = np.pad((images - mean) / std, ((0, 0), (3, 3), (3, 3), (0, 0)))
    kernel = np.asarray(variables["params"]["backbone"]["conv1"]["kernel"], np.float64)
    stem = sum(x[:, a : a + 65 : 2, b : b + 65 : 2] @ kernel[a, b] for a in range(7) for b in range(7))
    old, new = variables["batch_stats"]["backbone"]["bn1"], update(variables)
    for name, batch in (("mean", stem.mean((0, 1, 2))), ("var", stem.var((0, 1, 2)))):
        np.testing.assert_allclose(new[name], 0.75 * old[name] + 0.25 * batch, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("protect", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_stop_gradients_of_the_shared_tokens_and_of_the_pyramid(frozen, protect, model_tools, light_backbone):
    """Each stops the student at its own place, and the teacher nowhere (paper, Sec. 5.2)."""
    switches = {"guidance__stop_gradient": frozen, "guidance__protect": protect}
    config = model_tools.config("hfgd", channels=8, context_channels=12, wide_channels=16, **switches)
    model, variables = model_tools.build(config.model)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (2, 65, 65, 3)).astype(np.uint8)
    labels = jnp.asarray(rng.integers(0, 5, (2, 65, 65)), jnp.uint8)

    def losses(params):
        outputs, _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        parts = total_loss(outputs, labels, config.loss, num_classes=5, geometry="align_corners")[1]
        return {name: parts[name] for name in ("student", "teacher")}

    found = model_tools.reached(losses, variables["params"])
    for loss, untouched in (
        ("student", {*["class_tokens"] * frozen, *["backbone", "context"] * protect}),
        ("teacher", {"upsampler", "axial_attention"}),
    ):
        reached = {name for name, tree in found[loss].items() if any(jax.tree.leaves(tree))}
        assert reached == set(found[loss]) - untouched


def test_inference_of_the_other_branches(model_tools):
    """What the guide branch and the probe say of the same features that training shows them."""
    images = np.random.default_rng(0).integers(0, 256, (1, 65, 65, 3)).astype(np.uint8)
    guided = {"context": "cae", "guidance__tokens": True}
    for branch, changes in (("guide", guided), ("probe", {"guidance__probe": True})):
        model, variables = model_tools.build(model_tools.config("sfpn", **changes).model)
        bound = model.bind(variables)
        f32 = bound.backbone(bound._on_grid(images), False)[32]
        if branch == "guide":
            expected = classify(bound.context(f32, False).high, bound.class_tokens())
        else:
            expected = bound.probe(f32, False)
        got = jax.jit(lambda v, m=model, b=branch: m.apply(v, images, train=False, branch=b).logits)(
            variables
        )
        assert got.shape == (1, 3, 3, 5) and float(np.ptp(expected)) > 0
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_a_residual_student_adds_to_the_teachers_feature(model_tools, light_backbone):
    """The prediction is the plain student's plus the guide's without its bias, resized (both are linear)."""
    images = np.random.default_rng(0).integers(0, 256, (1, 65, 65, 3)).astype(np.uint8)
    models = [
        model_tools.build(model_tools.config("hfgd", guidance__residual=residual).model)
        for residual in (False, True)
    ]
    variables = models[0][1]
    plain, residual = (model.apply(variables, images, train=False).logits for model, _ in models)
    guide = models[0][0].apply(variables, images, train=False, branch="guide").logits
    guide = guide - variables["params"]["class_tokens"]["bias"]
    resized = geo.resize(guide, plain.shape[1:3], geometry="align_corners")
    np.testing.assert_allclose(residual, plain + resized, rtol=1e-4, atol=1e-4)
