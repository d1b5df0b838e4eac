"""Fine-tuning: a frozen backbone and averaged weights in a run. The optimizer alone: `test_optim.py`."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import assert_identical, random_batch, tiny_config

from hfgd_jax.models import macs
from hfgd_jax.runs.checkpoints import Checkpoints
from hfgd_jax.runs.system import abstract_state, build
from hfgd_jax.runtime.signals import Stop
from hfgd_jax.training import loop as training
from hfgd_jax.training.loop import Loop
from hfgd_jax.training.step import make_gradient
from hfgd_jax.weights import files, pretrained

pytestmark = pytest.mark.usefixtures("shallow")
STEPS = 3


@pytest.fixture(scope="module")
def runs(shapes_dir, tmp_path_factory):
    """A run from a weight file with a frozen backbone and averaged weights, and one killed in its last step.

    The system, the state it starts from, the workdirs `whole` and `broken` (which went on to the end), and
    what was evaluated in the first.
    """
    folder = tmp_path_factory.mktemp("fine_tuning")
    rng, variables = np.random.default_rng(0), pretrained.backbone_shapes("resnet18")
    variables = jax.tree.map(lambda x: rng.normal(0, 0.05, x.shape).astype(np.float32), variables)
    variables["batch_stats"] = jax.tree.map(lambda x: abs(x) + 0.1, variables["batch_stats"])
    tensors = pretrained.export(variables, pretrained.find_naming("resnet18", "timm"), root="backbone")
    files.write(folder / "weights.safetensors", tensors)
    fields = {"model.backbone.weights": str(folder / "weights.safetensors"), "optim.clip_norm": 1.0}
    fields |= {"optim.backbone_rate": 0.0, "train.ema_decay": 0.2, "train.steps": STEPS}
    fields |= {"mesh.fsdp": 2, "train.batch_size": 4, "train.accumulate": 2}
    config = tiny_config(shapes_dir, "fcn", **fields | {"checkpoint.every": 1, "checkpoint.keep": STEPS})

    loop, evaluated = Loop(config, str(folder / "whole"), Stop()), []
    start, score = jax.device_get(loop.state), loop.evaluator.score

    def noting(model, *args, **options):
        evaluated.append(jax.device_get(model))
        return score(model, *args, **options)

    loop.evaluator.score = noting
    loop.run()
    shutil.copytree(folder / "whole", folder / "broken")
    for lost in (f"checkpoints/{STEPS}", "best", "metrics.json"):
        path = folder / "broken" / lost
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    training.run(config, str(folder / "broken"))
    return loop.system, start, folder / "whole", folder / "broken", evaluated


def saved_state(system, workdir, step):
    """The items `model` and `training` of a checkpoint."""
    abstract = abstract_state(system)
    saved = Checkpoints(workdir, read_only=True)
    return jax.device_get(saved.restore(step, abstract.model, abstract.training))


def test_a_frozen_backbone_stays_as_it_is_to_the_last_bit(runs):
    system, start, whole, _, _ = runs
    average, training = saved_state(system, whole, STEPS)
    weights = files.read(system.config.model.backbone.weights)
    now = pretrained.export(
        training["variables"], pretrained.find_naming("resnet18", "timm"), root="backbone"
    )
    assert_identical({name: weights[name] for name in now}, now)
    for key, before in start.variables.items():
        assert_identical(before["backbone"], average[key]["backbone"])
        others = [group for group in before if group != "backbone"]
        moved = jax.tree.map(
            lambda a, b: np.any(a != b),
            *({g: tree[g] for g in others} for tree in (before, training["variables"][key])),
        )
        assert others and all(jax.tree.leaves(moved))


def test_the_average_follows_its_recurrence_and_is_what_is_evaluated_and_kept(runs):
    system, start, whole, _, evaluated = runs
    expected = start.variables
    assert_identical(start.average, expected)
    for step in range(STEPS):
        model, training = saved_state(system, whole, step + 1)
        decay = min(0.2, (1 + step) / (10 + step))
        expected = jax.tree.map(lambda a, x, d=decay: d * a + (1 - d) * x, expected, training["variables"])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), expected, model)
    (at_the_end,) = evaluated
    assert_identical(at_the_end, model)
    saved = Checkpoints(whole, read_only=True)
    step, best, _ = saved.restore_model("best", abstract_state(system).model)
    assert step == STEPS
    assert_identical(jax.device_get(best), model)


def test_a_killed_run_ends_like_an_undisturbed_one(runs):
    system, _, whole, broken, _ = runs
    assert_identical(saved_state(system, whole, STEPS), saved_state(system, broken, STEPS))
    assert (whole / "metrics.json").read_text() == (broken / "metrics.json").read_text()


def test_a_frozen_backbone_is_not_differentiated(tmp_path):
    """A step counts the multiply-accumulates of its forward pass alone."""
    batch, counts = random_batch(2), {}
    for rate in (0.0, 1.0):
        system = build(tiny_config(tmp_path, "fcn", **{"optim.backbone_rate": rate}))
        state = abstract_state(system)
        gradient, arguments = make_gradient(system), (state.params, state.batch_stats)
        arguments += (batch["image"], batch["label"], jnp.float32(1), jax.random.PRNGKey(0))
        counts[rate] = macs.by_part(macs.count(gradient, *arguments), ("backbone",))["backbone"]
    forward = macs.count(lambda v, x: system.model.apply(v, x, train=False), state.variables, batch["image"])
    assert counts[0.0] == macs.by_part(forward, ("backbone",))["backbone"]
    assert counts[1.0] > 2 * counts[0.0]
