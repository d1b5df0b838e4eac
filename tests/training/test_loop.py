"""The loop in a run directory: what it writes and what it refuses. Kills and signals: `test_resume.py`."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from tiny_runs import assert_identical, tiny_config

from hfgd_jax import config as configuration
from hfgd_jax.errors import UserError
from hfgd_jax.evaluation import metrics
from hfgd_jax.runs.system import build, make_init
from hfgd_jax.runtime.signals import Stop
from hfgd_jax.training import loop as training
from hfgd_jax.training.loop import Loop
from hfgd_jax.training.step import check_memory

pytestmark = pytest.mark.usefixtures("shallow")


def test_the_same_config_run_twice_is_identical(shapes_dir, tmp_path, light_backbone):
    """With class weights, which each run computes for itself; the latest checkpoints are kept."""
    states = []
    fields = {"loss.balance": "median_frequency", "checkpoint.every": 1, "checkpoint.keep": 2}
    for name in ("a", "b"):
        config = tiny_config(shapes_dir, "fcn", **fields)
        loop = Loop(config, str(tmp_path / name), Stop())
        loop.run()
        weights = loop.system.config.loss.class_weights
        assert len(set(weights)) == 9
        line = loop._class_weights()
        assert line.startswith(f"class weights (median_frequency): {weights[0]:.3g} sky, ")
        saved = configuration.from_json((tmp_path / name / "config.json").read_text())
        assert configuration.differences(saved, config) == []  # the same command goes on
        states.append(jax.device_get((loop.state.params, loop.state.opt_state)))
        assert sorted(int(p.name) for p in (tmp_path / name / "checkpoints").iterdir()) == [3, 4]
    assert_identical(*states)
    first, second = ((tmp_path / n / "metrics.json").read_text() for n in ("a", "b"))
    assert json.loads(first)["step"] == 4
    assert first == second


def test_a_run_writes_its_files_and_a_second_call_changes_nothing(shapes_dir, tmp_path):
    config = tiny_config(shapes_dir, **{"eval.every": 2, "eval.overlays": 2})
    assert training.run(config, str(tmp_path)) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == [1, 2, 3, 4]
    for key in ("teacher", "student", "car_intra", "learning_rate", "images_per_second", "data_wait"):
        assert key in lines[0]
    parts = [value for key, value in lines[0].items() if key.startswith("gradient_norm/")]
    assert len(parts) >= 5 and np.hypot.reduce(parts) == pytest.approx(lines[0]["gradient_norm"], rel=1e-4)
    assert [line["step"] for line in lines if "mIoU" in line] == [2, 4]
    summary = json.loads((tmp_path / "metrics.json").read_text())
    scores = {"step", "mIoU", "pixel_accuracy", "mean_accuracy", "per_class"}
    assert set(summary) == scores | {"confusion_matrix"}
    matrix, classes = np.array(summary["confusion_matrix"]), list(summary["per_class"])
    assert metrics.summarize(matrix, classes) == {key: summary[key] for key in scores - {"step"}}
    events = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").glob("events*"))
    assert b"IoU/sky" in events and b"confusion" in events and b"gradient_norm/backbone" in events
    assert len(list((tmp_path / "images").glob("step_*/*.png"))) == 4
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [2, 4]
    assert len(list((tmp_path / "best").iterdir())) == 1
    # A second call finds it finished and loses nothing.
    before = (tmp_path / "metrics.jsonl").read_text()
    assert training.run(config, str(tmp_path)) == 0
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_another_run_in_the_run_directory_is_refused(shapes_dir, tmp_path):
    workdir = epath.Path(tmp_path)
    (workdir / "config.json").write_text(configuration.to_json(tiny_config(shapes_dir)))
    with pytest.raises(UserError, match=r"optim\.learning_rate: 0\.001 -> 0\.5"):
        training.check_workdir(workdir, tiny_config(shapes_dir, **{"optim.learning_rate": 0.5}))
    # What does not touch the weights may change.
    training.check_workdir(workdir, tiny_config(shapes_dir, **{"eval.every": 3, "data.threads": 1}))


def test_checkpoints_of_an_unknown_run_are_refused(shapes_dir, tmp_path):
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    with pytest.raises(UserError, match="has checkpoints but no config"):
        training.check_workdir(epath.Path(tmp_path), tiny_config(shapes_dir))


def test_a_failed_start_leaves_the_run_directory_free(shapes_dir, tmp_path, monkeypatch, light_backbone):
    """The path of the weights, or the crop, is corrected and the same run directory used again."""
    workdir = tmp_path / "run"
    wrong = {"model.backbone.weights": str(tmp_path / "missing.safetensors")}
    with pytest.raises(UserError, match="no such file"):
        training.run(tiny_config(shapes_dir, "fcn", **wrong), str(workdir))

    def too_large(compiled, config, mesh):
        raise UserError("too large")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="too large"):
        patch.setattr(training, "check_memory", too_large)
        training.run(tiny_config(shapes_dir, "fcn"), str(workdir))
    assert not (workdir / "config.json").exists()
    assert training.run(tiny_config(shapes_dir, "fcn"), str(workdir)) == 0
    assert (workdir / "config.json").exists()


def test_a_loss_that_is_not_finite_stops_the_run(shapes_dir, tmp_path, light_backbone):
    config = tiny_config(
        shapes_dir, "fcn", **{"optim.learning_rate": 1e3, "optim.name": "sgd", "train.steps": 30}
    )
    with pytest.raises(UserError, match=r"step \d+: loss .*records: ") as caught:
        training.run(config, str(tmp_path))
    named = str(caught.value).split("records: ")[1].split(". ")[0].split(", ")
    assert len(named) == 2
    loop_split = training.open_data(config, "train")
    ids = {loop_split.record_id(i) for i in range(len(loop_split))}
    assert set(named) <= ids


def test_corrupt_records_stop_a_run_or_are_counted(spoilt_dir, tmp_path, light_backbone):
    fields = {"data.dataset": "camvid", "data.num_classes": 11, "train.steps": 3, "eval.overlays": 0}
    with pytest.raises(UserError, match=r"split 'train', record \d \(id 'seq0"):
        training.run(tiny_config(spoilt_dir, "fcn", **fields), str(tmp_path / "strict"))
    config = tiny_config(spoilt_dir, "fcn", **fields | {"data.skip_corrupt": True})
    assert training.run(config, str(tmp_path / "lenient")) == 0
    lines = [json.loads(x) for x in (tmp_path / "lenient" / "metrics.jsonl").read_text().splitlines()]
    # Three steps of two are one epoch of six records, two of which are damaged.
    assert [line["corrupt_records"] for line in lines if "loss" in line][-1] == 2


def test_a_crop_that_needs_too_much_memory_is_refused(tmp_path):
    class Analysis:
        argument_size_in_bytes = output_size_in_bytes = alias_size_in_bytes = 0
        temp_size_in_bytes = 2**60

    class Compiled:
        def memory_analysis(self):
            return Analysis()

    config = tiny_config(tmp_path)
    with pytest.raises(UserError, match=r"config\.data\.crop=\(65, 65\).*GiB"):
        check_memory(Compiled(), config, build(config).mesh)


def test_a_batch_that_does_not_divide_is_refused(shapes_dir, tmp_path):
    config = tiny_config(shapes_dir, **{"mesh.data": 8, "train.batch_size": 12})
    with pytest.raises(UserError, match=r"must be a multiple of the 8 devices.*use 16 or 8"):
        Loop(config, str(tmp_path), Stop())


def test_initial_weights_depend_on_the_seed_alone(tmp_path, light_backbone):
    """`init` depends on the seed alone."""
    init = jax.jit(make_init(build(tiny_config(tmp_path, "fcn"))))
    one, same, other = (init(jax.random.PRNGKey(seed)).params for seed in (0, 0, 1))
    assert_identical(one, same)
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: bool(jnp.any(a != b)), one, other)))
