"""The deformable convolution against a naive one in float64."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from hfgd_jax.models.convolutions import convolve
from hfgd_jax.models.deformable import DeformableConv, deformable_convolve


def naive(x, offsets, masks, kernel, stride, dilation):
    """One output position, tap, channel and corner at a time."""
    (_, h, w, c), size, groups = x.shape, kernel.shape[0], offsets.shape[3]
    out = np.zeros((*offsets.shape[:3], kernel.shape[-1]))
    for n, i, j in np.ndindex(out.shape[:3]):
        for a, e, channel in np.ndindex(size, size, c):
            at = n, i, j, channel // (c // groups), a * size + e
            y = i * stride + (a - size // 2) * dilation + offsets[at][0]
            z = j * stride + (e - size // 2) * dilation + offsets[at][1]
            value, top, left = 0.0, int(np.floor(y)), int(np.floor(z))
            for p, q in itertools.product((top, top + 1), (left, left + 1)):
                if 0 <= p < h and 0 <= q < w:
                    value += (1 - abs(y - p)) * (1 - abs(z - q)) * x[n, p, q, channel]
            out[n, i, j] += masks[at] * value * kernel[a, e, channel]
    return out


def example(groups, stride, dilation, reach, side=(5, 4), c=4, d=3):
    """Arguments in float64, whose positions keep away from whole numbers, where the gradient jumps."""
    rng = np.random.default_rng(groups + 2 * stride + 4 * dilation)
    shape = (2, *((n - 1) // stride + 1 for n in side), groups, 9)
    offsets = np.floor(rng.uniform(-reach, reach, (*shape, 2))) + rng.uniform(0.1, 0.9, (*shape, 2))
    x, kernel = rng.normal(size=(2, *side, c)), rng.normal(size=(3, 3, c, d))
    return x, offsets, rng.uniform(0.2, 1.0, shape), kernel


CASES = [(1, 1, 1, 1.0), (2, 1, 1, 9.0), (2, 2, 1, 2.0), (1, 1, 2, 3.0), (4, 2, 2, 4.0)]


@pytest.mark.parametrize(("groups", "stride", "dilation", "reach"), CASES)
def test_equals_naive_with_its_gradients(groups, stride, dilation, reach):
    """Values, and all four gradients against central differences along coordinates and one random line."""
    arguments = example(groups, stride, dilation, reach)
    weights = np.random.default_rng(9).normal(size=(*arguments[1].shape[:3], 3))
    reference = lambda *a: naive(*a, stride, dilation)  # noqa: E731
    with jax.enable_x64(True):
        out, pull = jax.vjp(
            lambda *a: deformable_convolve(*a, stride=stride, dilation=dilation), *map(jnp.asarray, arguments)
        )
        gradients = pull(jnp.asarray(weights))
        assert out.dtype == jnp.float64
    np.testing.assert_allclose(out, reference(*arguments), atol=1e-12)
    rng = np.random.default_rng(10)
    for which, gradient in enumerate(map(np.asarray, gradients)):
        lines = [rng.normal(size=gradient.shape)]
        for place in rng.choice(gradient.size, 6, replace=False):
            line = np.zeros(gradient.size)
            line[place] = 1.0
            lines.append(line.reshape(gradient.shape))
        for line in lines:
            step = 1e-6 * line
            high, low = (
                reference(*(v + sign * step if k == which else v for k, v in enumerate(arguments)))
                for sign in (1, -1)
            )
            slope = np.sum(weights * (high - low)) / 2e-6
            np.testing.assert_allclose(np.sum(gradient * line), slope, rtol=1e-6, atol=1e-6)


def test_offset_gradients_at_borders():
    """A cell half outside: the derivative is that of a ramp from the border sample down to zero."""
    x, kernel = jnp.full((1, 3, 3, 1), 2.0), jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    masks = jnp.ones((1, 3, 3, 1, 9))

    def corner(y, z):
        offsets = jnp.zeros((1, 3, 3, 1, 9, 2)).at[0, 0, 0, 0, 4].set(jnp.stack([y, z]))
        return deformable_convolve(x, offsets, masks, kernel)[0, 0, 0, 0]

    check = jax.jit(jax.value_and_grad(corner, (0, 1)))
    for (y, z), value, slopes in (
        ((-0.25, 0.5), 1.5, (2.0, 0.0)),  # above the map
        ((0.5, 2.75), 0.5, (0.0, -2.0)),  # right of it
        ((2.5, -0.5), 0.5, (-1.0, 1.0)),  # below and left
        ((-1.5, 0.5), 0.0, (0.0, 0.0)),  # beyond reach
        ((1e12, -1e12), 0.0, (0.0, 0.0)),
    ):
        got, gradient = check(y, z)
        np.testing.assert_allclose((got, *gradient), (value, *slopes), atol=1e-6)


@pytest.mark.parametrize(
    ("size", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (3, 1, 2), (5, 2, 3), (1, 2, 1)]
)
def test_zero_offsets_are_the_plain_convolution(size, stride, dilation):
    rng = np.random.default_rng(0)
    shapes = (2, 7, 6, 4), (size, size, 4, 3)
    x, kernel = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    expected = convolve(x, kernel, stride, dilation)
    masks = jnp.ones((*expected.shape[:3], 2, size * size))
    y = deformable_convolve(x, jnp.zeros((*masks.shape, 2)), masks, kernel, stride=stride, dilation=dilation)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_bfloat16_is_close_and_its_positions_are_float32():
    x, offsets, masks, kernel = (jnp.asarray(v, jnp.float32) for v in example(2, 1, 1, 3.0, side=(9, 8)))
    # Between samples 40 and 41, which are 0 and 64; in bfloat16 the position would be 40.
    edge = jnp.zeros((1, 64, 1, 2), jnp.bfloat16).at[0, 41].set(64)
    single = jnp.zeros((3, 3, 2, 1)).at[1, 1, 0].set(1)
    shift = jnp.zeros((1, 64, 1, 1, 9, 2)).at[..., 0].set(40 + 1 / 64)
    y = deformable_convolve(edge, shift, jnp.ones(shift.shape[:-1]), single)
    assert y.dtype == jnp.bfloat16 and y[0, 0, 0, 0] == 1
    half = lambda v: jnp.asarray(v, jnp.bfloat16)  # noqa: E731

    def loss(x, offsets, masks, kernel):
        return jnp.sum(deformable_convolve(x, offsets, masks, kernel).astype(jnp.float32) ** 2)

    step = jax.value_and_grad(loss, (0, 1, 2, 3))
    got, gradients = step(half(x), offsets, masks, half(kernel))
    want, expected = step(x, offsets, masks, kernel)
    np.testing.assert_allclose(got, want, rtol=0.02)
    for a, b in zip(gradients, expected, strict=True):
        assert jnp.linalg.norm(a.astype(jnp.float32) - b) < 0.02 * jnp.linalg.norm(b)


def test_a_batch_over_devices_stays_there():
    """No device gathers another's images, forwards or backwards."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))

    def loss(x, offsets, masks, kernel):
        return jnp.sum(deformable_convolve(x, offsets, masks, kernel) ** 2)

    shapes = ((8, 5, 5, 4), (8, 5, 5, 2, 9, 2), (8, 5, 5, 2, 9), (3, 3, 4, 3))
    shardings = (split, split, split, whole)
    step = jax.jit(jax.grad(loss, (0, 1, 2, 3)), in_shardings=shardings, out_shardings=shardings)
    text = step.lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile().as_text()
    assert "all-reduce" in text  # of the kernel's gradient
    assert not any(word in text for word in ("all-gather", "all-to-all", "collective-permute"))


def test_no_more_than_one_tap_is_held():
    """Neither the samples of all taps nor what their gradients need is ever an array of the trace."""
    shapes = ((1, 6, 5, 32), (1, 6, 5, 1, 9, 2), (1, 6, 5, 1, 9), (3, 3, 32, 2))
    gradient = jax.grad(lambda *a: jnp.sum(deformable_convolve(*a) ** 2), (0, 1, 2, 3))
    trace = jax.make_jaxpr(gradient)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))

    def sizes(jaxpr):
        for eqn in jaxpr.eqns:
            yield from (math.prod(variable.aval.shape) for variable in eqn.outvars)
            for inner in jaxprs_in_params(eqn.params):
                yield from sizes(inner)

    assert max(sizes(trace.jaxpr)) == math.prod(shapes[0])


@pytest.mark.usefixtures("unchecked")
def test_shapes_that_do_not_belong_together_are_refused():
    x, offsets, masks, kernel = example(2, 1, 1, 1.0)
    for wrong, message in (
        ((x, offsets[:, 1:], masks, kernel), "offsets"),
        ((x, offsets, masks[..., 1:], kernel), "masks"),
        ((x, offsets, masks, kernel[..., 1:, :]), "kernel"),
        ((x[..., :3], offsets, masks, kernel[:, :, :3]), "3 channels, 2 groups"),
        ((x, offsets[..., :4, :], masks[..., :4], kernel[:2, :2]), "side 2"),
    ):
        with pytest.raises(ValueError, match=message):
            deformable_convolve(*wrong)


def test_the_module_starts_as_half_a_plain_convolution_and_follows_its_guide(model_tools):
    rng = np.random.default_rng(0)
    x, guide = (jnp.asarray(rng.normal(size=(2, 6, 5, c)), jnp.float32) for c in (4, 7))
    module = DeformableConv(3, groups=2)
    params = module.init(jax.random.key(0), x, guide)["params"]
    np.testing.assert_allclose(
        module.apply({"params": params}, x, guide), convolve(x, params["kernel"], 1, 1) / 2, atol=1e-6
    )
    params = model_tools.randomize(params)
    predict = params["offsets_and_masks"]
    raw = np.asarray(convolve(guide, predict["kernel"], 1, 1) + predict["bias"], np.float64)
    expected = naive(
        np.asarray(x, np.float64),
        raw[..., :36].reshape(2, 6, 5, 2, 9, 2),
        1 / (1 + np.exp(-raw[..., 36:].reshape(2, 6, 5, 2, 9))),
        np.asarray(params["kernel"], np.float64),
        1,
        1,
    )
    y = module.apply({"params": params}, x, guide)
    np.testing.assert_allclose(y, expected + np.asarray(params["bias"]), atol=1e-4)
