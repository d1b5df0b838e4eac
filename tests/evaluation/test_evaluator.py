"""Scores: a confusion matrix of every image once; several checkpoints, and a run as it goes."""

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import Small
from tiny_runs import random_state

import hfgd_jax
from hfgd_jax import config as configuration
from hfgd_jax.data.prepared import open_split
from hfgd_jax.errors import UserError
from hfgd_jax.evaluation.boundaries import Details
from hfgd_jax.evaluation.evaluator import Evaluator, run
from hfgd_jax.inference.tiles import TiledPredictor
from hfgd_jax.runs import system
from hfgd_jax.runs.checkpoints import Checkpoints, meta
from hfgd_jax.runtime import sharding
from hfgd_jax.training import loop

pytestmark = pytest.mark.usefixtures("light_backbone_everywhere")


@pytest.fixture(scope="module")
def trained(camvid_dir):
    """A tiny model with random weights on the miniature CamVid, whose images differ in size."""
    config = configuration.default()
    configuration.set_method(config, "sfpn")
    configuration.set_tiny(config)
    config.data.update({"dataset": "camvid", "data_dir": str(camvid_dir), "num_classes": 11})
    config.eval.batch_size = 2
    made = system.build(config)
    state = random_state(made)
    split = open_split(camvid_dir, "camvid", "val")
    return config, made, state, split


@pytest.fixture(scope="module")
def small(trained):
    """A model that compiles in no time, and its variables on the mesh."""
    model, made = Small("align_corners", 11), trained[1]
    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, 65, 65, 3)), False))
    return model, jax.device_put(init(jax.random.key(1)), sharding.replicated(made.mesh))


def test_the_matrix_counts_every_pixel_of_every_image_once(trained, small):
    config, made, _, split = trained
    model, variables = small
    matrix = Evaluator(model, config, made.mesh).score(variables, split, made.mean_pixel).matrix
    labels = [split.example(i)["label"] for i in range(len(split))]
    counts = sum(np.bincount(label[label != 255].ravel(), minlength=11) for label in labels)
    np.testing.assert_array_equal(matrix.sum(1), counts)


SETTINGS = {
    "plain": {},
    "reduced": {"data.input_scale": 0.5},
    "everything": {"eval.scales": (0.75, 1, 1.5), "eval.flip": True, "eval.window": (65, 65)},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_matrix_equals_that_of_single_predictions(trained, small, name):
    config, made, _, split = trained
    model, variables = small
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(SETTINGS[name] | {"eval.details": True})
    evaluator = Evaluator(model, config, made.mesh)
    images_done = []
    scores = evaluator.score(variables, split, made.mean_pixel, on_batch=images_done.append)
    assert images_done[-1] == len(split)
    predictor = TiledPredictor(evaluator.inference, variables, made.mean_pixel)
    predictor.plan([split.size(i) for i in range(len(split))])
    want, details = np.zeros((11, 11), np.int64), Details(11)
    for i in range(len(split)):
        example = split.example(i)
        label, mask = example["label"], predictor(example["image"]).mask
        assert mask.shape == label.shape
        np.add.at(want, (label[label != 255], mask[label != 255]), 1)
        details.add(label, mask)
    # Sums in another order may differ in the last bit, and so a pixel at a tie.
    assert np.abs(scores.matrix - want).sum() <= 0.002 * want.sum()
    assert (want.sum(0) > 0).sum() > 2
    assert details.counts[1].sum() > 0
    assert np.abs(scores.details.counts - details.counts).sum() <= 0.01 * details.counts.sum()


def test_an_evaluation_stops_when_asked(trained, small):
    config, made, _, split = trained
    model, variables = small
    calls = iter([False, True])
    scores = Evaluator(model, config, made.mesh).score(
        variables, split, made.mean_pixel, should_stop=lambda: next(calls)
    )
    assert scores is None


# -- checkpoints of a run --


def save(trained, workdir, *steps, table=None):
    """Writes the model as it is as the checkpoint of each step; the label table is the data's by default."""
    config, _, state, split = trained
    model, training = jax.device_get((state.model, state.training))  # one writer for all eight devices
    saved = Checkpoints(workdir, keep=9)
    for step in steps:
        saved.save(step, model, training, meta(step, config, table or split.table))
    saved.close()


def records(workdir):
    lines = (workdir / "evaluations.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


@pytest.fixture
def finished(trained):
    """The trained model's config as that of a run of three steps."""
    config = trained[0].copy_and_resolve_references()
    config.train.steps = 3
    return config


def test_several_checkpoints_are_scored_and_recorded(trained, finished, tmp_path, capsys):
    save(trained, tmp_path, 1, 2, 3)
    assert run(finished, str(tmp_path), "2, latest") == 0
    assert [record["step"] for record in records(tmp_path)] == [2, 3]
    text = capsys.readouterr().out
    assert text.count("the model was compiled for 2 shapes") == 2  # the second checkpoint compiles nothing
    assert "           2  step        2  mIoU 0." in text and "      latest  step        3  mIoU" in text
    assert not (tmp_path / "metrics.json").exists()  # the training's
    # Watching makes up for what is missing and ends with the run's last step.
    assert run(finished, str(tmp_path), "watch") == 0
    assert [record["step"] for record in records(tmp_path)] == [2, 3, 1]
    # Other settings are another evaluation; what a kill cut short does not count.
    with (tmp_path / "evaluations.jsonl").open("a") as file:
        file.write('{"step": 1')
    finished.eval.update({"flip": True, "details": True})
    assert run(finished, str(tmp_path), "1") == 0
    summary = json.loads((tmp_path / "metrics.json").read_text())
    assert summary["step"] == 1 and summary["boundary_IoU"] > 0
    assert "small object recall %" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--checkpoint=7: not in .*; it holds steps \[1, 2, 3\]"):
        run(finished, str(tmp_path), "2,7")
    assert [record["step"] for record in records(tmp_path)] == [
        2,
        3,
        1,
        1,
    ]  # the one that is there was not scored before


@pytest.fixture
def watched(trained, small, tmp_path, monkeypatch):
    """Loads the small model from whatever is called a checkpoint; the first one is there."""
    model, variables = small
    stand_in = dataclasses.replace(trained[1], model=model)

    def load(config, workdir, which):
        if not (tmp_path / "checkpoints" / which).is_dir():
            raise UserError(f"--checkpoint={which}: not in {workdir}")
        return stand_in, variables, int(which), trained[3].table

    monkeypatch.setattr("hfgd_jax.evaluation.evaluator.load", load)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    return tmp_path


def test_watching_scores_each_new_checkpoint_of_a_run(finished, watched, monkeypatch, capsys):
    looks, folder = [], watched / "checkpoints"

    def wait(stop, seconds):
        """Between two looks the run goes on: a save under way, a save, and the last one."""
        looks.append([record["step"] for record in records(watched)])
        unfinished = folder / "2.orbax-checkpoint-tmp-1"
        if len(looks) == 1:
            unfinished.mkdir()
        elif len(looks) == 2:
            unfinished.rename(folder / "2")
        else:
            (folder / "3").mkdir()

    monkeypatch.setattr("hfgd_jax.runtime.signals.Stop.wait", wait)
    assert run(finished, str(watched), "watch") == 0
    assert looks == [[1], [1], [1, 2]]
    assert [record["step"] for record in records(watched)] == [1, 2, 3]
    assert {path.name for path in watched.iterdir()} == {"checkpoints", "evaluations.jsonl"}
    assert capsys.readouterr().out.count("mIoU: 0.") == 3


def test_watching_skips_a_checkpoint_that_the_run_removes(finished, watched, monkeypatch, capsys):
    """The run keeps a few: one may go between the look and the reading."""
    (watched / "checkpoints" / "3").mkdir()
    (watched / "checkpoints" / "1").rmdir()
    steps = iter([{1, 3}])
    monkeypatch.setattr("orbax.checkpoint.utils.checkpoint_steps", lambda folder: next(steps, {3}))
    assert run(finished, str(watched), "watch") == 0
    assert [record["step"] for record in records(watched)] == [3]
    assert "step 1 was removed before it could be scored" in capsys.readouterr().out


def test_watching_ends_on_a_signal(finished, watched, monkeypatch):
    monkeypatch.setattr("hfgd_jax.runtime.signals.Stop.wait", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert run(finished, str(watched), "watch") == 130
    assert [record["step"] for record in records(watched)] == [1]


def test_a_split_without_labels_is_refused(trained, tmp_path, monkeypatch):
    config, _, _, split = trained
    monkeypatch.setattr(split, "labelled", False)
    monkeypatch.setattr("hfgd_jax.evaluation.evaluator.open_data", lambda *_: split)
    with pytest.raises(UserError, match="has no labels; use --mode=predict --input=split:val"):
        run(config, str(tmp_path), "latest")


def test_a_model_of_another_order_of_the_classes_is_neither_scored_nor_trained(trained, finished, tmp_path):
    finished.train.batch_size = 8
    table = trained[3].table
    save(trained, tmp_path, 0, table=dataclasses.replace(table, classes=table.classes[::-1]))
    (tmp_path / "config.json").write_text(configuration.to_json(finished))
    uses = [lambda: run(finished, str(tmp_path), "latest"), lambda: loop.run(finished, str(tmp_path))]
    for use in (*uses, lambda: hfgd_jax.evaluate(tmp_path, checkpoint="latest")):
        with pytest.raises(
            UserError, match=r"another order than those of 'camvid' \(train id 0: 'bicyclist'"
        ):
            use()
