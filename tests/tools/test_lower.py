"""hfgd_jax.tools.lower: both steps for platforms that are not here, and what has no lowering is named."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import Primitive
from jax.interpreters import mlir

from configs import demo
from hfgd_jax.errors import UserError
from hfgd_jax.tools import lower


@pytest.fixture(scope="module")
def cpu_only():
    """An operation that a CPU alone knows."""
    primitive = Primitive("made_up")
    primitive.def_abstract_eval(lambda x: x)
    mlir.register_lowering(primitive, lambda context, x: [x], platform="cpu")
    return primitive.bind


def test_the_tiny_demo_is_lowered_for_tpu_and_cuda_on_an_absent_mesh(capsys):
    config = demo.get_config("tiny")
    config.mesh.fsdp, config.train.batch_size = 8, 64
    config.loss.balance = "median_frequency"  # of data that is not here
    steps = lower.steps(config, devices=64)
    assert steps.keys() == {"train step", "masks"}
    sizes = {}
    for name, (function, arguments) in steps.items():
        for platform in ("tpu", "cuda"):
            result = lower.attempt(function, arguments, platform)
            assert not result.error and result.size > 10_000 and result.lines > 100
            sizes[name, platform] = result.size
            assert lower.line(name, platform, result).split("OK")[1].split()[1] == "MiB,"
    assert sizes["train step", "tpu"] > 3 * sizes["masks", "tpu"]
    assert config.loss.balance == "median_frequency"
    state, batch = steps["train step"][1]
    assert batch["image"].sharding.mesh.shape == {"data": 8, "fsdp": 8}
    assert any("fsdp" in str(x.sharding.spec) for x in jax.tree.leaves(state))


def test_an_operation_without_a_lowering_is_named_with_its_place(cpu_only):
    @jax.jit
    def function(x):
        with jax.named_scope("decoder"):
            return jax.lax.map(lambda row: cpu_only(row) * 2, x) + 1

    argument = jax.ShapeDtypeStruct((3, 4), jnp.float32)
    assert not lower.attempt(function, [argument], "cpu").error
    result = lower.attempt(function, [argument], "tpu")
    assert result.error.startswith("no lowering of 'made_up' in decoder")
    assert "FAILED" in lower.line("train step", "tpu", result) and "made_up" in lower.line("x", "tpu", result)


def test_the_command_returns_1_where_one_step_fails(cpu_only, monkeypatch, capsys):
    bad = (jax.jit(cpu_only), [jax.ShapeDtypeStruct((2,), jnp.float32)])
    good = (jax.jit(jnp.sin), bad[1])
    config = demo.get_config("tiny")

    def code(platforms, **steps):
        values = type("Values", (), {"platforms": platforms, "config": config, "devices": 4})
        with monkeypatch.context() as patch:
            patch.setattr(lower, "steps", lambda *_: steps)
            patch.setattr(lower.flags, "FLAGS", values)
            return lower.main([])

    assert code(["tpu", "cuda"], good=good) == 0
    assert code(["cpu"], bad=bad) == 0
    assert code(["cpu", "tpu"], bad=bad, good=good) == 1
    out = capsys.readouterr().out
    assert out.count("FAILED") == 1 and "mesh {'data': 4, 'fsdp': 1}" in out
    with pytest.raises(UserError, match=r"--platforms=gpu: unknown; .*NVIDIA's is cuda"):
        code(["gpu"], good=good)


def test_a_batch_that_does_not_divide_is_refused_before_tracing():
    with pytest.raises(UserError, match=r"config\.train\.batch_size"):
        lower.steps(demo.get_config("tiny"), devices=3)


def test_command_line(user_env):
    command = [sys.executable, "-m", "hfgd_jax.tools.lower", "--config", "configs/demo.py:tiny,method=fcn"]
    done = subprocess.run(
        [*command, "--platforms=tpu"], env=user_env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert [line.split("OK")[0].split() for line in done.stdout.splitlines()[1:]] == [
        ["train", "step", "tpu"],
        ["masks", "tpu"],
    ]
