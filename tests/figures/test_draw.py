"""What is in the figures: titles, panels, images and lines; not how they look."""

import numpy as np
import pytest
from etils import epath

from hfgd_jax.figures import comparison, draw
from hfgd_jax.figures.curves import Curve

pytest.importorskip("matplotlib")

PALETTE = np.uint8([[10, 20, 30], [200, 0, 0], [0, 200, 0]])
CLASSES = ("sky", "road", "car")


def texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_a_comparison_has_a_row_an_image_and_one_a_box():
    label = np.zeros((20, 30), np.uint8)
    label[:, 15:], label[0] = 1, 255
    right, wrong = np.where(label == 255, 0, label), np.zeros_like(label)
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    box = comparison.Box(5, 12, 8, 10)
    one = draw.ComparedImage("first", image, label, (wrong, right), (0.25, None), [box])
    other = draw.ComparedImage("second", image, label, (right, right), (1.0, 1.0), [])
    figure = draw.compare([one, other], ["SFPN", "HFGD"], CLASSES, PALETTE)
    grid = np.array(figure.axes).reshape(3, 5)
    assert [ax.get_title() for ax in grid[0]] == ["image", "label", "SFPN", "HFGD", "SFPN / HFGD"]
    assert [ax.get_ylabel() for ax in grid[:, 0]] == ["first", "enlarged", "second"]
    assert [ax.get_xlabel() for ax in grid[0]] == ["", "", "25.0", "no label", ""]
    shown = [[ax.images[0].get_array() for ax in row] for row in grid]
    np.testing.assert_array_equal(shown[0][0], image)
    np.testing.assert_array_equal(shown[1][0], image[5:13, 12:22])
    np.testing.assert_array_equal(shown[0][3], PALETTE[right])
    np.testing.assert_array_equal(shown[1][2], PALETTE[wrong][5:13, 12:22])
    blue, white, ignored = (list(bytes.fromhex(c)) for c in ("0072B2", "FFFFFF", "E8E8E8"))
    assert shown[0][4][10, 20].tolist() == blue and shown[0][4][10, 3].tolist() == white
    assert shown[0][4][0, 20].tolist() == ignored
    assert len(grid[0, 0].patches) == 2 and not grid[1, 0].patches  # the box and its white border
    # The legends have the classes in sight, and which run is right.
    assert texts(figure) == [
        *("sky", "road"),
        *("both right", "only SFPN right", "only HFGD right", "neither right", "not labelled"),
    ]


def test_features_have_a_panel_a_run_and_a_colour_a_class():
    labels = np.repeat([4, 2], 5)
    points = np.arange(20.0).reshape(10, 2)
    panels = {name: (points + i, f"silhouette {i}") for i, name in enumerate("abcd")}
    figure = draw.features(panels, labels, {2: "sky", 4: "car"})
    assert [ax.get_title() for ax in figure.axes] == [f"{n}\nsilhouette {i}" for i, n in enumerate("abcd")]
    sky, car = figure.axes[1].collections
    np.testing.assert_array_equal(sky.get_offsets(), points[5:] + 1)
    np.testing.assert_array_equal(car.get_offsets(), points[:5] + 1)
    assert (sky.get_facecolor() != car.get_facecolor()).any() and texts(figure) == ["sky", "car"]
    many = dict(enumerate(map(str, range(draw.MOST_CLASSES))))
    scattered = draw.features({"a": (points[:0], "")}, labels[:0], many).axes[0].collections
    looks = {(*one.get_facecolor()[0], len(one.get_paths()[0].vertices)) for one in scattered}
    assert len(looks) == draw.MOST_CLASSES


def test_matrices_share_one_scale():
    one, other = np.float64([[0.9, 0.1], [0.3, 0.7]]), np.full((2, 2), 0.5)
    figure = draw.matrices({"SFPN": one, "HFGD": other}, ("sky", "car"))
    assert [ax.get_title() for ax in figure.axes[:2]] == [
        "SFPN\nmean diagonal 0.800",
        "HFGD\nmean diagonal 0.500",
    ]
    assert all(ax.images[0].get_clim() == (0.0, 1.0) for ax in figure.axes[:2])
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), one)
    assert [text.get_text() for text in figure.axes[0].texts] == ["90", "10", "30", "70"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["sky", "car"]


def test_bars_are_means_with_a_point_a_seed_and_a_colour_a_kind():
    groups = [
        draw.Bar("FCN", "alone", [0.5, 0.6]),
        draw.Bar("a", "probe", [0.4]),
        draw.Bar("b", "probe", [0.3]),
    ]
    figure = draw.bars(groups, "mIoU, %")
    (ax,) = figure.axes
    assert [bar.get_height() for bar in ax.patches] == pytest.approx([55, 40, 30])
    assert ax.lines[0].get_ydata().tolist() == pytest.approx([50, 60]) and len(ax.lines) == 1
    assert [text.get_text() for text in ax.texts] == ["55.0", "40.0", "30.0"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["FCN", "a", "b"]
    assert texts(figure) == ["alone", "probe"] and ax.get_ylabel() == "mIoU, %"
    assert ax.patches[1].get_facecolor() == ax.patches[2].get_facecolor() != ax.patches[0].get_facecolor()


def test_curves_have_a_band_where_seeds_differ():
    steps = np.float64([10, 20])
    one, many = Curve(steps, steps, np.zeros(2)), Curve(steps, 2 * steps, np.float64([1, 2]))
    figure = draw.curves({"loss": {"a": one, "b": many}, "mIoU, %": {"b": many}}, ["loss"])
    loss, miou = figure.axes
    assert (loss.get_title(), miou.get_title()) == ("loss", "mIoU, %")
    assert (loss.get_yscale(), miou.get_yscale()) == ("log", "linear")
    assert [line.get_ydata().tolist() for line in loss.lines] == [[10, 20], [20, 40]]
    assert len(loss.collections) == 1
    band = loss.collections[0].get_datalim(loss.transData).get_points()
    assert band[:, 1].tolist() == [19, 42]
    assert loss.lines[1].get_color() == miou.lines[0].get_color() and texts(figure) == ["a", "b"]


def test_a_figure_is_written_whole_and_the_same_each_time(tmp_path):
    figure = draw.matrices({"run": np.eye(2)}, ("sky", "car"))
    paths = [epath.Path(tmp_path / "new" / name) for name in ("a.png", "b.svg", "a.pdf")]
    draw.save(figure, paths)
    heads = [path.read_bytes()[:5] for path in paths]
    assert heads == [b"\x89PNG\r", b"<?xml", b"%PDF-"]
    before = [path.read_bytes() for path in paths]
    draw.save(figure, paths)
    assert [path.read_bytes() for path in paths] == before
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.pdf", "a.png", "b.svg"]
    assert 'xlink:href="http' not in paths[1].read_text()
