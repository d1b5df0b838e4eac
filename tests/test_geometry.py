"""The resize against a NumPy reference in float64, and against torch where it is installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hfgd_jax import geometry as geo

GEOMETRIES = ("align_corners", "half_pixel")
# Enlarged and shrunk by integers (in either geometry), by other factors, from and to a single pixel.
SIZES = [
    (5, 9),
    (3, 33),
    (6, 12),
    (6, 18),
    (33, 5),
    (12, 3),
    (13, 5),
    (12, 4),
    (7, 10),
    (10, 7),
    (1, 4),
    (4, 1),
]


resize = jax.jit(geo.resize, static_argnums=1, static_argnames=("method", "geometry"))


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Compiled fast rather than to be fast."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def weights(n, m, geometry):
    """The matrix of linear interpolation from n to m samples."""
    matrix = np.zeros((m, n))
    for i in range(m):
        if geometry == "align_corners":
            x = i * (n - 1) / (m - 1) if m > 1 else 0.0
        else:
            x = min(max((i + 0.5) * n / m - 0.5, 0.0), n - 1.0)
        low = min(int(np.floor(x)), n - 1)
        matrix[i, low] += 1 - (x - low)
        matrix[i, min(low + 1, n - 1)] += x - low
    return matrix


def nearest(n, m, geometry):
    """The source of each of m samples."""
    if geometry == "align_corners":
        return [int(np.floor(i * (n - 1) / (m - 1) + 0.5)) if m > 1 else 0 for i in range(m)]
    return [int(np.floor((i + 0.5) * n / m)) for i in range(m)]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("n, m", SIZES)
def test_bilinear_and_its_gradient(n, m, geometry):
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=(2, n, 6, 3)), rng.normal(size=(2, m, 11, 3))
    rows, columns = weights(n, m, geometry), weights(6, 11, geometry)

    @jax.jit
    def both(x, g):
        y, pull = jax.vjp(lambda x: geo.resize(x, (m, 11), geometry=geometry), x)
        return y, pull(g)[0]

    y, gradient = both(x.astype(np.float32), g.astype(np.float32))
    np.testing.assert_allclose(y, np.einsum("mh,nw,bhwc->bmnc", rows, columns, x), atol=2e-5)
    np.testing.assert_allclose(gradient, np.einsum("mh,nw,bmnc->bhwc", rows, columns, g), atol=2e-5)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("n, m", SIZES)
def test_nearest_on_labels(n, m, geometry):
    x = np.random.default_rng(0).integers(0, 256, (2, 5, n)).astype(np.uint8)
    expected = x[:, nearest(5, 9, geometry)][:, :, nearest(n, m, geometry)]
    for labels, want in ((x, expected), (x[..., None], expected[..., None])):
        y = resize(jnp.asarray(labels), (9, m), method="nearest", geometry=geometry)
        assert y.dtype == jnp.uint8
        np.testing.assert_array_equal(y, want)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_equals_torch(geometry):
    torch = pytest.importorskip("torch")
    for n, m in SIZES:
        x = np.random.default_rng(0).normal(size=(2, 3, n, 7)).astype(np.float32)
        expected = torch.nn.functional.interpolate(
            torch.tensor(x), (m, 13), mode="bilinear", align_corners=geometry == "align_corners"
        )
        y = resize(jnp.asarray(x.transpose(0, 2, 3, 1)), (m, 13), geometry=geometry)
        np.testing.assert_allclose(y, expected.numpy().transpose(0, 2, 3, 1), atol=1e-5)
        if geometry == "half_pixel":
            expected = torch.nn.functional.interpolate(torch.tensor(x), (m, 13), mode="nearest-exact")
            y = resize(jnp.asarray(x.transpose(0, 2, 3, 1)), (m, 13), method="nearest", geometry=geometry)
            np.testing.assert_array_equal(y, expected.numpy().transpose(0, 2, 3, 1))


def test_align_corners_keeps_samples_and_takes_every_s_th_label():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 5, 2)), jnp.float32)
    y = resize(x, (9, 9))
    np.testing.assert_array_equal(y[:, ::2, ::2], x)
    np.testing.assert_allclose(y[:, 1, 0], (x[:, 0, 0] + x[:, 1, 0]) / 2, rtol=1e-6)
    labels = jnp.arange(65 * 97).reshape(1, 65, 97)
    np.testing.assert_array_equal(resize(labels, (3, 4), method="nearest"), labels[:, ::32, ::32])


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_mirror_images_commute(geometry):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 6, 5, 2)), jnp.float32)
    for size in ((11, 9), (12, 10), (9, 13)):
        y = resize(x[:, :, ::-1], size, geometry=geometry)
        np.testing.assert_allclose(y, resize(x, size, geometry=geometry)[:, :, ::-1], atol=1e-6)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_on_the_grid_is_neither_gather_nor_product(geometry):
    """Gathers have slow gradients and products would count as multiply-accumulates."""
    n, m = (5, 17) if geometry == "align_corners" else (5, 20)
    grad = jax.grad(lambda x: jnp.sum(geo.resize(x, (m, m), geometry=geometry) ** 2))
    text = str(jax.make_jaxpr(grad)(jnp.zeros((1, n, n, 3))))
    assert not any(op in text for op in ("gather", "scatter", "dot_general", "conv_general"))


def test_sizes():
    assert geo.grid_size((513, 512), "align_corners") == (513, 513)
    assert geo.grid_size((514, 33), "align_corners") == (545, 33)
    assert geo.grid_size((513, 512), "half_pixel") == (544, 512)
    for geometry, size in (("align_corners", (513, 1025)), ("half_pixel", (512, 1024))):
        for stride in (2, 4, 8, 16, 32):
            extra = 1 if geometry == "align_corners" else 0
            expected = (512 // stride + extra, 1024 // stride + extra)
            assert geo.feature_size(size, stride, geometry) == expected


def test_padding():
    x = jnp.full((1, 2, 3, 3), 7, jnp.uint8)
    y = np.asarray(geo.pad_to(x, (4, 5), (123.675, 116.28, 103.53)))
    assert y.dtype == np.uint8 and (y[:, :2, :3] == 7).all()
    assert (y[:, 2:] == (124, 116, 104)).all() and (y[:, :, 3:] == (124, 116, 104)).all()
    labels = np.asarray(geo.pad_to(x[..., 0], (2, 4), 255))
    assert (labels[:, :, 3] == 255).all() and (labels[:, :, :3] == 7).all()
    with pytest.raises(ValueError, match="larger"):
        geo.pad_to(x, (1, 5), 0)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_to_pixels_of_an_off_grid_size(geometry):
    """The logits of the padded grid, resized and then cropped: a pixel keeps its place."""
    size = (50, 71)
    grid = geo.grid_size(size, geometry)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, *geo.feature_size(grid, 4, geometry), 2)))
    y = geo.to_pixels(x, size, geometry=geometry)
    np.testing.assert_array_equal(y, resize(x, grid, geometry=geometry)[:, :50, :71])
    assert y.shape == (1, *size, 2)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_labels_at_a_feature_size(geometry):
    labels = jnp.ones((1, 50, 60), jnp.uint8)
    grid = geo.grid_size((50, 60), geometry)
    size = geo.feature_size(grid, 8, geometry)
    y = np.asarray(geo.labels_at(labels, size, geometry=geometry))
    first = 0 if geometry == "align_corners" else 4
    rows, columns = (first + 8 * np.arange(side) for side in size)
    inside = (rows < 50)[:, None] & (columns < 60)
    np.testing.assert_array_equal(y[0], np.where(inside, 1, 255))


def test_bfloat16_is_interpolated_in_float32():
    x = jnp.asarray([1.0, 1.0078125], jnp.bfloat16).reshape(1, 1, 2, 1)
    y = resize(x, (1, 9))
    assert y.dtype == jnp.bfloat16
    expected = resize(x.astype(jnp.float32), (1, 9)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.usefixtures("unchecked")
def test_wrong_arguments():
    x = jnp.zeros((1, 4, 4, 1))
    with pytest.raises(ValueError, match="method"):
        geo.resize(x, (8, 8), method="cubic")
    with pytest.raises(ValueError, match="geometry"):
        geo.resize(x, (8, 8), geometry="corners")
    with pytest.raises(ValueError, match="floats"):
        geo.resize(jnp.zeros((1, 4, 4), jnp.uint8), (8, 8))
