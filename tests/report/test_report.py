"""hfgd_jax.tools.report: a run's report has the evaluation's counts, each run through its own views."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from tiny_runs import randomize, tiny_config

from hfgd_jax import cli
from hfgd_jax.data.labels import TABLES
from hfgd_jax.errors import UserError
from hfgd_jax.evaluation.evaluator import Evaluator
from hfgd_jax.report.collect import Options
from hfgd_jax.report.predictions import judge
from hfgd_jax.runs import system
from hfgd_jax.tools import import_weights, report

pytestmark = pytest.mark.usefixtures("light_backbone_everywhere")
OPTIONS = Options(side=64, thumbnail=16, threshold=0.0)


def write_run(folder, data_dir, dataset="camvid", seed=0, **fields):
    """A run of random weights, of a data set whose images differ in size."""
    table = TABLES[dataset]
    of_data = {"data.dataset": dataset, "data.num_classes": table.num_classes}
    config = tiny_config(data_dir, "sfpn", **of_data, **{"eval.batch_size": 2}, **fields)
    made = system.build(config)
    shapes = jax.eval_shape(system.make_init(made), jax.random.PRNGKey(0)).model
    import_weights.write_run(epath.Path(folder), made, jax.device_get(randomize(shapes, seed)), table)
    return str(folder)


@pytest.fixture(scope="module")
def runs(camvid_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    first = write_run(folder / "first", camvid_dir)
    return first, write_run(folder / "second", camvid_dir, seed=1, **{"eval.flip": True})


def data(folder, name):
    text = (folder / "data" / f"{name}.js").read_text()
    return json.loads(text.partition(" = ")[2].rstrip(";\n"))


def evaluated(workdir):
    config = report.run_config(workdir, "")
    made, variables, _, _ = system.load(config, workdir, "latest")
    split = system.open_data(config, "val")
    return Evaluator(made.model, config, made.mesh).score(variables, split, made.mean_pixel).matrix


def test_a_report_counts_what_the_evaluation_counts(runs, tmp_path):
    target = tmp_path / "deep" / "report"
    assert report.make(runs, "latest", "", str(target), OPTIONS, overwrite=False) == 5
    scores, images = data(target, "scores"), data(target, "images")
    assert scores["matrix"] == evaluated(runs[0]).tolist()
    other = evaluated(runs[1])
    assert [c["other"]["labelled"] for c in scores["classes"]] == other.sum(1).tolist()
    assert [c["other"]["predicted"] for c in scores["classes"]] == other.sum(0).tolist()
    assert [run["name"] for run in scores["runs"]] == ["first", "second"]
    assert scores["runs"][1]["settings"]["flip"] and not scores["runs"][0]["settings"]["flip"]
    assert sum(image["differ"] for image in images) > 0
    split = system.open_data(report.run_config(runs[0], ""), "val")
    assert sorted(image["id"] for image in images) == sorted(split.record_id(i) for i in range(5))
    assert not list((tmp_path / "deep").glob(".*"))  # nothing is left behind


def test_judge_reads_the_softmax():
    logits = jax.random.normal(jax.random.key(0), (1, 4, 5, 3)) * 4
    label = jnp.array(np.random.default_rng(0).choice([0, 1, 2, 255], (1, 4, 5)).astype(np.uint8))
    judged, wanted = judge(logits, label), np.asarray(jax.nn.softmax(logits))
    np.testing.assert_array_equal(judged.mask, wanted.argmax(-1))
    np.testing.assert_allclose(judged.confidence, wanted.max(-1), rtol=1e-5)
    own = [0.0 if k == 255 else p[k] for k, p in zip(np.ravel(label), wanted.reshape(-1, 3), strict=True)]
    np.testing.assert_allclose(np.ravel(judged.given), own, rtol=1e-5)


def test_only_a_report_is_replaced_and_only_when_told(runs, tmp_path):
    def make(folder, overwrite):
        with report.folder_for(str(folder), overwrite) as part:
            (part / "data").mkdir()
            (part / "data" / "scores.js").write_text("")
            (part / str(overwrite)).touch()

    target = tmp_path / "report"
    make(target, False)
    with pytest.raises(UserError, match=r"--output=.*report: is there already; take another name, or --ov"):
        make(target, False)
    make(target, True)
    assert [path.name for path in sorted(target.iterdir())] == ["True", "data"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(UserError, match="is there already and is no report"):
        make(tmp_path / "photos", True)
    with pytest.raises(UserError, match="want a folder of this machine"):
        make("gs://bucket/report", True)
    with pytest.raises(ZeroDivisionError), report.folder_for(str(tmp_path / "cut"), False):
        raise ZeroDivisionError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "report"]


def test_bad_input_is_one_line(runs, shapes_dir, tmp_path):
    target = str(tmp_path / "report")
    other = write_run(tmp_path / "shapes", shapes_dir, "shapes")
    with pytest.raises(UserError, match=r"shapes: its classes are not those of data set 'camvid': 9 and 11"):
        report.make([runs[0], other], "latest", "", target, OPTIONS, overwrite=False)
    with pytest.raises(UserError, match="has no split 'nowhere'"):
        report.make(runs[:1], "latest", "nowhere", target, OPTIONS, overwrite=False)
    with pytest.raises(UserError, match="holds no run"):
        report.make([str(tmp_path)], "latest", "", target, OPTIONS, overwrite=False)
    with pytest.raises(UserError, match="--checkpoint=7"):
        report.make(runs[:1], "7", "", target, OPTIONS, overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


def test_runs_of_one_name_are_told_apart(tmp_path):
    names = report.names_of([str(tmp_path / "a" / "seed0"), str(tmp_path / "b" / "seed0")])
    assert names == ["a/seed0", "b/seed0"]
    assert report.names_of([str(tmp_path / "a"), str(tmp_path / "a")]) == ["a", "a"]


def test_the_command_is_there():
    assert cli.COMMANDS["report"].module == report.__name__
