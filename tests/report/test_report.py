"""hfgd_jax.tools.report: a run's report has the evaluation's counts, each run through its own views."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import Small
from tiny_runs import tiny_config

from hfgd_jax import cli
from hfgd_jax.data import prepared
from hfgd_jax.data.labels import TABLES
from hfgd_jax.errors import UserError
from hfgd_jax.evaluation.evaluator import Evaluator
from hfgd_jax.report import predictions
from hfgd_jax.report.collect import Options
from hfgd_jax.runs import system
from hfgd_jax.runs.workdir import short_names
from hfgd_jax.tools import report

OPTIONS = Options(side=64, thumbnail=16, doubt=1.0)


@dataclasses.dataclass(frozen=True)
class StandIn:
    """What is loaded of a run: a config, and a model that compiles in no time."""

    config: object
    made: system.System
    variables: object
    table: object


def stand_in(data_dir, dataset="camvid", seed=0, **fields):
    table = TABLES[dataset]
    of_data = {"data.dataset": dataset, "data.num_classes": table.num_classes, "eval.batch_size": 2}
    config = tiny_config(data_dir, "sfpn", **of_data, **fields)
    model = Small("align_corners", table.num_classes)
    made = dataclasses.replace(system.build(config), model=model)
    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, 65, 65, 3)), False))
    return StandIn(config, made, init(jax.random.key(seed)), table)


@pytest.fixture
def runs(camvid_dir, shapes_dir, monkeypatch):
    """Three runs by their folders, of which nothing is read: two on the miniature CamVid of many sizes."""
    found = {
        "runs/first": stand_in(camvid_dir),
        "runs/second": stand_in(camvid_dir, seed=1, **{"eval.flip": True}),
        "runs/shapes": stand_in(shapes_dir, "shapes"),
    }

    def load(config, workdir, which):
        assert which == "latest"
        return system.Trained(found[workdir].made, found[workdir].variables, 7, found[workdir].table)

    read = report.saved_config.get_config
    monkeypatch.setattr(
        report.saved_config,
        "get_config",
        lambda w: found[w].config.copy_and_resolve_references() if w in found else read(w),
    )
    monkeypatch.setattr(predictions.systems, "load", load)
    return found


def data(folder, name):
    text = (folder / "data" / f"{name}.js").read_text()
    return json.loads(text.partition(" = ")[2].rstrip(";\n"))


def evaluated(run):
    split = system.open_data(run.config, "val")
    return Evaluator(run.made.model, run.config, run.made.mesh).score(
        run.variables, split, run.made.mean_pixel
    )


def test_a_report_counts_what_the_evaluation_counts(runs, tmp_path):
    target = tmp_path / "deep" / "report"
    workdirs = ["runs/first", "runs/second"]
    assert report.make(workdirs, "latest", "", str(target), OPTIONS, overwrite=False) == 5
    scores, images = data(target, "scores"), data(target, "images")
    assert scores["matrix"] == evaluated(runs["runs/first"]).matrix.tolist()
    other = evaluated(runs["runs/second"]).matrix
    assert [c["other"]["labelled"] for c in scores["classes"]] == other.sum(1).tolist()
    assert [c["other"]["predicted"] for c in scores["classes"]] == other.sum(0).tolist()
    assert [(run["name"], run["step"]) for run in scores["runs"]] == [("first", 7), ("second", 7)]
    assert scores["runs"][1]["settings"]["flip"] and not scores["runs"][0]["settings"]["flip"]
    assert sum(image["differ"] for image in images) > 0
    split = system.open_data(runs["runs/first"].config, "val")
    assert sorted(image["id"] for image in images) == sorted(split.record_id(i) for i in range(5))
    assert not list((tmp_path / "deep").glob(".*"))  # nothing is left behind


def test_a_record_is_decoded_once_and_seen_as_it_is_stored(camvid_dir, monkeypatch):
    run = stand_in(camvid_dir, **{"eval.scales": (0.5,)})
    split = system.open_data(run.config, "val")
    stored = {split.record_id(i): split.example(i) for i in range(5)}
    decoded, example = [], prepared.Split.example
    monkeypatch.setattr(prepared.Split, "example", lambda self, i: decoded.append(i) or example(self, i))
    found = list(predictions.seen_by(system.Trained(run.made, run.variables, 7, run.table), split))
    assert sorted(decoded) == list(range(5)) and {seen.id for seen in found} == stored.keys()
    for seen in found:
        np.testing.assert_array_equal(seen.image, stored[seen.id]["image"])
        np.testing.assert_array_equal(seen.label, stored[seen.id]["label"])
        assert seen.mask.shape == seen.confidence.shape == seen.label.shape


def test_judge_reads_the_softmax():
    logits = jax.random.normal(jax.random.key(0), (1, 4, 5, 3)) * 4
    label = jnp.array(np.random.default_rng(0).choice([0, 1, 2, 255], (1, 4, 5)).astype(np.uint8))
    judged, wanted = predictions.judge(logits, label), np.asarray(jax.nn.softmax(logits))
    np.testing.assert_array_equal(judged.mask, wanted.argmax(-1))
    np.testing.assert_allclose(judged.confidence, wanted.max(-1), rtol=1e-5)
    own = [0.0 if k == 255 else p[k] for k, p in zip(np.ravel(label), wanted.reshape(-1, 3), strict=True)]
    np.testing.assert_allclose(np.ravel(judged.given), own, rtol=1e-5)


def test_only_a_report_is_replaced_and_only_when_told(tmp_path):
    def make(folder, overwrite):
        with report.folder_for(str(folder), overwrite) as part:
            (part / "data").mkdir()
            (part / "data" / "scores.js").write_text("")
            (part / ("core.js" if overwrite else "run.js")).touch()

    target = tmp_path / "report"
    make(target, False)
    with pytest.raises(UserError, match=r"--output=.*report: is there already; take another name, or --ov"):
        make(target, False)
    make(target, True)
    assert [path.name for path in sorted(target.iterdir())] == ["core.js", "data"]
    (target / "notes.txt").touch()
    with pytest.raises(UserError, match=r"holds 'notes.txt' beside a report; move it away first"):
        make(target, True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(UserError, match="is there already and is no report"):
        make(tmp_path / "photos", True)
    with pytest.raises(UserError, match="want a folder of this machine"):
        make("gs://bucket/report", True)
    with pytest.raises(ZeroDivisionError), report.folder_for(str(tmp_path / "cut"), False):
        raise ZeroDivisionError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "report"]


def test_bad_input_is_one_line(runs, tmp_path):
    def make(*workdirs, split=""):
        return report.make(workdirs, "latest", split, str(tmp_path / "report"), OPTIONS, overwrite=False)

    with pytest.raises(UserError, match=r"shapes: its classes are not those of data set 'camvid': 9 and 11"):
        make("runs/first", "runs/shapes")
    with pytest.raises(UserError, match="has no split 'nowhere'"):
        make("runs/first", split="nowhere")
    with pytest.raises(UserError, match="holds no run"):
        make(str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_runs_of_one_name_are_told_apart(tmp_path):
    names = short_names([str(tmp_path / "a" / "seed0"), str(tmp_path / "b" / "seed0")])
    assert names == ["a/seed0", "b/seed0"]
    assert short_names([str(tmp_path / "a"), str(tmp_path / "a")]) == ["a", "a"]


def test_the_command_is_there():
    assert cli.COMMANDS["report"].module == report.__name__
