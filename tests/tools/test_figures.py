"""hfgd figures ...: the commands on tiny runs; what they choose, print and draw, and what they refuse."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest
from absl import flags
from etils import epath
from tiny_runs import random_state, tiny_config

from hfgd_jax import cli
from hfgd_jax import config as configuration
from hfgd_jax.data.labels import TABLES
from hfgd_jax.data.prepared import open_split
from hfgd_jax.errors import UserError
from hfgd_jax.figures import features, tokens
from hfgd_jax.figures.draw import ComparedImage
from hfgd_jax.runs import system
from hfgd_jax.tools import (
    figures_compare,
    figures_contamination,
    figures_curves,
    figures_features,
    figures_options,
    figures_tokens,
    import_weights,
)

pytest.importorskip("matplotlib")
CLASSES = TABLES["shapes"].classes


def kernel(seed):
    channels = tiny_config("", "sfpn").model.channels
    return np.random.default_rng(seed).standard_normal((channels, len(CLASSES))).astype(np.float32)


@pytest.fixture(scope="module")
def runs(shapes_dir, tmp_path_factory, light_backbone_everywhere):
    """Two runs of random weights on the first scenes of `shapes`."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("one", "two")):
        built = system.build(tiny_config(shapes_dir, "sfpn"))
        variables = jax.device_get(random_state(built).model)
        variables["params"]["class_tokens"]["kernel"] = kernel(seed)
        import_weights.write_run(epath.Path(folder / name), built, variables, TABLES["shapes"])
        scores = {"step": 0, "mIoU": 0.1, "per_class": {c: k / 10 for k, c in enumerate(CLASSES)}}
        (folder / name / "metrics.json").write_text(json.dumps(scores))
    return f"--workdirs={folder / 'one'},{folder / 'two'}"


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Runs a command in this process; gives the lines that it printed and the figure."""
    drawn = []
    monkeypatch.setattr(figures_options, "save", lambda figure, paths: drawn.append((figure, paths)))

    def call(module, *options):
        cli.forget_options()
        module.define_flags()
        flags.FLAGS(["command", *options, f"--output={tmp_path / 'figure.png'}"])
        assert module.main([]) == 0
        figure, paths = drawn.pop()
        assert paths == [epath.Path(tmp_path / "figure.png")]
        return capsys.readouterr().out.splitlines(), figure

    yield call
    cli.forget_options()
    flags.FLAGS.mark_as_parsed()


def test_compare_chooses_images_and_parts(runs, command, shapes_dir):
    lines, figure = command(figures_compare, runs, "--count=2", "--candidates=3", "--zooms=2")
    split = open_split(shapes_dir, "shapes", "val")
    shares = {line.split()[0]: float(line.split()[-2]) for line in lines[2:]}
    assert len(shares) == 2 and set(shares) < {split.record_id(i) for i in (0, 4, 7)}
    assert [*shares.values()] == sorted(shares.values(), reverse=True)
    assert len(figure.axes) == 2 * 3 * 5 and figure.axes[4].get_title() == "one / two"


def test_images_differ_in_pixels_or_in_iou():
    label = np.uint8([[0, 1, 255, 0]])
    masks = [np.uint8([[0, 1, 0, 0]]), np.uint8([[0, 0, 1, 0]]), np.uint8([[0, 1, 1, 1]])]
    one = ComparedImage("", np.zeros((1, 4, 3), np.uint8), label, masks, (1.0, 0.25, None), [])
    assert figures_compare.difference(one, "pixels") == pytest.approx(2 / 3)
    assert figures_compare.difference(one, "iou") == 0.75
    assert figures_compare.difference(dataclasses.replace(one, scores=(None, None)), "iou") is None


def test_compare_shows_the_images_and_parts_that_are_named(runs, command, shapes_dir):
    name = open_split(shapes_dir, "shapes", "val").record_id(3)
    options = (f"--images={name}", "--labels=SFPN,HFGD", "--box=2,3,20,30")
    lines, figure = command(figures_compare, runs, *options)
    assert [line.split()[0] for line in lines[2:]] == [name] and len(figure.axes) == 10
    assert figure.axes[5].images[0].get_array().shape == (20, 30, 3)
    assert figure.axes[2].get_title() == "SFPN"
    for options, message in (
        ([f"--images={name}x"], f"no such image; did you mean '{name}'"),
        (["--box=1,1,2,2"], "wants one image"),
        ([f"--images={name}", "--box=1,1,2"], "want TOP,LEFT,HEIGHT,WIDTH"),
        ([f"--images={name}", "--box=0,0,9,9999"], "not within the image"),
        (["--split=test"], "no split 'test'"),
    ):
        with pytest.raises(UserError, match=message):
            command(figures_compare, runs, *options)
    with pytest.raises(UserError, match="two runs or more"):
        command(figures_compare, runs.partition(",")[0])


def test_features_are_those_of_the_same_pixels(runs, command, monkeypatch):
    seen = []
    monkeypatch.setattr(features, "embed", lambda found, seed: seen.append(found) or found[:, :2])
    monkeypatch.setattr(figures_options, "require", lambda *packages: None)  # UMAP need not be
    lines, figure = command(figures_features, runs, "--classes=sky,grass", "--per_class=20", "--count=3")
    assert seen[0].shape[0] == 40 and lines[-1] == "20 pixels of each of sky, grass; 3 images"
    # The runs differ in their tokens alone: one feature, one score.
    np.testing.assert_allclose(seen[0], seen[1], atol=1e-5)
    one, two = (line.split() for line in lines[2:4])
    apart = features.separation(seen[0], np.repeat([0, 2], 20))
    assert one[1:] == two[1:] and float(one[2]) == pytest.approx(apart.silhouette, abs=6e-4)
    assert f"silhouette {apart.silhouette:.3f}" in figure.axes[0].get_title()
    np.testing.assert_array_equal(figure.axes[0].collections[0].get_offsets(), seen[0][:20, :2])
    for options, message in (
        (["--classes=sky,gras"], "no 'gras'; did you mean 'grass'"),
        (["--classes=sky"], "want 2 to"),
        (["--classes=sky,pole", "--per_class=9999", "--count=1"], "lower it, or raise --count"),
    ):
        with pytest.raises(UserError, match=message):
            command(figures_features, runs, *options)


def test_the_worst_classes_are_those_of_the_lowest_iou_that_have_pixels():
    classes = [f"class{i}" for i in range(12)]
    scores = [{"per_class": {c: (11 - i) / 20 for i, c in enumerate(classes)}} for _ in range(2)]
    scores[1]["per_class"]["class0"] = None
    scores[1]["per_class"]["class11"] = 1.0
    enough = [True] * 12
    enough[10] = False
    assert figures_features.worst(scores, classes, enough) == [2, 3, 4, 5, 6, 7, 8, 9]
    assert figures_features.worst(scores, classes[:3], enough[:3]) == [0, 1, 2]


def test_tokens_are_those_of_the_runs(runs, command):
    lines, figure = command(figures_tokens, runs)
    for i, (line, name) in enumerate(zip(lines[2:], ("one", "two"), strict=True)):
        shape = figures_tokens.statistics(kernel(i))
        assert line.split() == [name, "0", *(f"{value:.3f}" for value in shape)]
        np.testing.assert_allclose(
            figure.axes[i].images[0].get_array(), tokens.dependencies(kernel(i)), atol=1e-6
        )
    diagonal, cosine, norm = figures_tokens.statistics(np.float32([[3, 0], [0, 0]]))
    assert (diagonal, cosine, norm) == (pytest.approx((1 / (1 + np.exp(-9)) + 0.5) / 2), 0.0, 1.5)


def workdir(folder, config, **files):
    folder.mkdir()
    (folder / "config.json").write_text(configuration.to_json(config))
    for name, lines in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def test_curves_put_runs_of_other_seeds_together(tmp_path, command):
    folders = []
    for method, seed in (("sfpn", 0), ("sfpn", 1), ("hfgd", 0)):
        config = tiny_config(tmp_path, method, **{"train.seed": seed})
        lines = [{"step": 20, "loss": 2.0 + seed, "learning_rate": 0.1}, {"step": 40, "loss": 1.0 + seed}]
        lines += [{"step": 40, "mIoU": 0.5 + 0.1 * seed}] if method == "sfpn" else []
        folders.append(workdir(tmp_path / f"{method}_{seed}", config, metrics=lines))
    lines, figure = command(
        figures_curves, f"--workdirs={','.join(folders)}", "--labels=SFPN,HFGD", "--log_loss"
    )
    assert [line.split("  ")[0] for line in lines[2:]] == ["loss", "loss", "mIoU, %", *["learning rate"] * 2]
    assert lines[2].split()[-3:] == ["40", "1.5", "0.71"] and "SFPN, 2 seeds" in lines[2]
    assert lines[4].split()[-3:] == ["40", "55", "7.1"]
    assert [ax.get_title() for ax in figure.axes] == ["loss", "mIoU, %", "learning rate"]
    assert figure.axes[0].get_yscale() == "log" and len(figure.axes[1].lines) == 1
    empty = workdir(tmp_path / "empty", tiny_config(tmp_path, "sfpn"))
    with pytest.raises(UserError, match=r"metrics\.jsonl has no line yet"):
        command(figures_curves, f"--workdirs={empty}")


SETTINGS = {"split": "val", "scales": [1.0], "flip": False, "window": [0, 0], "window_overlap": 1 / 3}
PROBE = {"model.guidance.probe": True}


def test_contamination_reads_the_branch_that_measures_the_backbone(tmp_path, command):
    made = (
        ("fcn", "fcn", {}, [("prediction", 0.46)]),
        ("fcn1", "fcn", {"train.seed": 1}, [("prediction", 0.44)]),
        ("probe", "sfpn", PROBE, [("probe", 0.9), ("probe", 0.44), ("prediction", 0.47)]),
        ("stop", "sfpn", PROBE | {"model.guidance.probe_stop_gradient": True}, [("probe", 0.4)]),
        ("hfgd", "hfgd", {}, [("prediction", 0.5), ("guide", 0.48)]),
    )
    folders = {}
    for name, method, fields, found in made:
        lines = [{"step": 4, "mIoU": miou, "branch": branch, **SETTINGS} for branch, miou in found]
        config = tiny_config(tmp_path, method, **fields)
        folders[name] = workdir(tmp_path / name, config, evaluations=lines)
    lines, figure = command(figures_contamination, f"--workdirs={','.join(folders.values())}")
    assert [line.split()[:4] for line in lines[2:]] == [
        ["fcn", "45.00", "2", "+0.00"],
        ["probe", "44.00", "1", "-1.00"],
        ["stop", "40.00", "1", "-5.00"],
        ["hfgd", "48.00", "1", "+3.00"],
    ]
    assert len(figure.axes[0].patches) == 4 and len(figure.legends[0].get_texts()) == 4
    # What a training ends with counts, too, where its config names the branch.
    config = tiny_config(tmp_path, "sfpn", **PROBE, **{"eval.branch": "probe"})
    own = workdir(tmp_path / "own", config)
    (tmp_path / "own" / "metrics.json").write_text(json.dumps({"step": 4, "mIoU": 0.3}))
    assert figures_contamination.outline(own, "own")["mIoU"] == 0.3


def test_contamination_refuses_what_measures_nothing(tmp_path, command):
    plain = workdir(tmp_path / "plain", tiny_config(tmp_path, "sfpn"))
    bare = workdir(tmp_path / "bare", tiny_config(tmp_path, "sfpn", **PROBE))
    line = {"step": 4, "mIoU": 0.5, "branch": "prediction", **SETTINGS}
    fcn = workdir(tmp_path / "fcn", tiny_config(tmp_path, "fcn"), evaluations=[line])
    flipped = tiny_config(tmp_path, "fcn", **{"model.channels": 16})
    flipped = workdir(tmp_path / "flipped", flipped, evaluations=[line | {"flip": True}])
    for workdirs, message in (
        (plain, "those of the upsampler 'sfpn'.*train it with --config.model.guidance.probe=True"),
        (bare, "no evaluation of its probe branch; .*--config.eval.branch=probe makes one"),
        (f"{fcn},{flipped}", "fcn was evaluated with eval.flip=False, flipped with True"),
    ):
        with pytest.raises(UserError, match=message):
            command(figures_contamination, f"--workdirs={workdirs}")


def test_files_are_refused_before_anything_is_computed(tmp_path, monkeypatch):
    values = flags.FlagValues()
    flags.DEFINE_list("output", [], "", values)
    flags.DEFINE_bool("overwrite", False, "", values)
    (tmp_path / "there.svg").write_text("")
    for output, message in (
        ("a.jpg", r"want a name that ends in .png, .svg, .pdf"),
        (f"{tmp_path}/new.png,{tmp_path}/there.svg", "is there already"),
        ("", "needed"),
    ):
        values(["command", f"--output={output}"])
        with pytest.raises(UserError, match=message):
            figures_options.outputs(values)
    values(["command", f"--output={tmp_path}/there.svg", "--overwrite"])
    assert figures_options.outputs(values, "sklearn") == [epath.Path(tmp_path / "there.svg")]
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UserError, match=r'this figure needs umap: pip install "hfgd_jax\[figures\]"'):
        figures_options.outputs(values, "sklearn", "umap")


def test_images_are_spread_over_a_split():
    assert figures_options.spread_out(10, 4) == [0, 3, 6, 9]
    assert figures_options.spread_out(3, 0) == figures_options.spread_out(3, 9) == [0, 1, 2]
