"""hfgd_jax.models.macs, against counts by hand; the paper's Table 9."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from hfgd_jax import config as configuration
from hfgd_jax.errors import UserError
from hfgd_jax.models import macs
from hfgd_jax.tools import macs as report

X = jax.ShapeDtypeStruct


def _total(function, *shapes):
    return sum(macs.count(function, *(X(shape, jnp.float32) for shape in shapes)).values())


def _conv(strides, **options):
    layout = ("NHWC", "HWIO", "NHWC")
    return functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=strides,
        padding="SAME",
        dimension_numbers=layout,
        **options,
    )


def test_convolution():
    got = _total(_conv((1, 1)), (2, 9, 7, 3), (3, 5, 3, 4))
    assert got == 2 * 9 * 7 * 4 * (3 * 5 * 3)


def test_strided_convolution_counts_its_outputs():
    got = _total(_conv((2, 2)), (1, 9, 7, 3), (3, 3, 3, 4))
    assert got == 5 * 4 * 4 * (3 * 3 * 3)


def test_dilated_convolution_has_no_more():
    got = _total(_conv((1, 1), rhs_dilation=(4, 4)), (1, 9, 9, 3), (3, 3, 3, 4))
    assert got == 9 * 9 * 4 * (3 * 3 * 3)


def test_grouped_convolution_sees_its_group():
    got = _total(_conv((1, 1), feature_group_count=4), (1, 8, 8, 16), (3, 3, 4, 8))
    assert got == 8 * 8 * 8 * (3 * 3 * 4)


def test_transposed_convolution_does_not_count_the_holes():
    got = _total(lambda x, k: jax.lax.conv_transpose(x, k, (2, 2), "SAME"), (1, 8, 8, 3), (4, 4, 3, 5))
    assert got == (8 * 8 * 3) * (4 * 4 * 5)


def test_layout_does_not_matter():
    def function(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW")
        )

    assert _total(function, (2, 3, 9, 7), (4, 3, 3, 5)) == 2 * 9 * 7 * 4 * (3 * 5 * 3)


def test_product_with_batch_dimensions():
    got = _total(lambda a, b: jnp.einsum("bqhd,bkhd->bhqk", a, b), (2, 5, 3, 7), (2, 11, 3, 7))
    assert got == 2 * 3 * 5 * 11 * 7


def test_product_over_two_dimensions():
    assert _total(lambda a, b: jnp.einsum("aij,ijc->ac", a, b), (2, 3, 4), (3, 4, 5)) == 2 * 5 * 12


def test_fused_attention_counts_both_products():
    shape = (2, 10, 4, 8)  # batch, length, heads, head width
    assert _total(jax.nn.dot_product_attention, shape, shape, shape) == 2 * (2 * 4 * 10 * 10 * 8)


def test_scan_counts_each_turn():
    def function(x, w):
        return jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=6)[0]

    assert _total(function, (4, 4), (4, 4)) == 6 * 64


def test_inner_functions_count_once():
    @jax.custom_jvp
    def plain(x, w):
        return x @ w

    plain.defjvp(lambda primals, tangents: (primals[0] @ primals[1], tangents[0] @ primals[1]))

    @jax.custom_vjp
    def other(x, w):
        return x @ w

    other.defvjp(lambda x, w: (x @ w, w), lambda w, g: (g @ w.T, w))
    for wrap in (jax.jit, jax.checkpoint, jax.vmap):
        assert _total(wrap(plain), (3, 2, 4), (3, 4, 5)) == 3 * 2 * 4 * 5
        assert _total(wrap(other), (3, 2, 4), (3, 4, 5)) == 3 * 2 * 4 * 5


def test_condition_counts_the_dearest_branch():
    def function(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x @ w @ w)

    assert _total(function, (4, 4), (4, 4)) == 2 * 64


def test_loop_without_a_known_length_is_refused():
    def function(x, w):
        return jax.lax.while_loop(lambda c: c[0, 0] < 9, lambda c: c @ w, x)

    with pytest.raises(ValueError, match="'while'"):
        _total(function, (4, 4), (4, 4))
    assert _total(lambda x: jax.lax.while_loop(lambda c: c[0] < 9, lambda c: c + 1, x), (4,)) == 0


def test_backward_pass_of_a_dense_layer_costs_twice_the_forward():
    assert _total(jax.grad(lambda w, x: (x @ w).sum() ** 2), (4, 5), (3, 4)) == 60 + 60
    assert _total(jax.grad(lambda w, x: (x @ w).sum() ** 2, argnums=(0, 1)), (4, 5), (3, 4)) == 60 + 120


class _Inner(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jax.jit(lambda y: y * 2)(nn.Conv(4, (1, 1), name="conv")(x))


class _Outer(nn.Module):
    def setup(self):
        self.backbone = _Inner()
        self.context = nn.remat(_Inner)()

    def __call__(self, x):
        x = self.context(self.backbone(x))
        with jax.named_scope("tail"):
            return x @ jnp.ones((4, 2))


def test_scopes_and_parts():
    x = X((1, 3, 3, 2), jnp.float32)
    model = _Outer()
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    counts = macs.count(model.apply, variables, x)
    assert counts["_Outer/backbone/conv"] == 9 * 2 * 4
    assert counts["_Outer/tail"] == 9 * 4 * 2
    assert macs.by_part(counts, ["upsampler", "backbone", "context"]) == {
        "upsampler": 0,
        "backbone": 72,
        "context": 144,
        "other": 72,
    }


@pytest.mark.parametrize(
    ("method", "paper"), [("sa_car_d8", 158.96), ("sfpn", 45.65), ("hfgd", 71.63), ("hfgd_os2", 153.62)]
)
def test_table_9(method, paper):
    config = configuration.default()
    configuration.set_method(config, method)
    config.data.num_classes = 59
    counts, parameters = report.inference_macs(config, (513, 513))
    assert sum(counts.values()) / 1e9 == pytest.approx(paper, rel=0.025)
    assert list(counts) == list(report.PARTS)
    if method != "sa_car_d8":  # the well-known 4.09 GMACs at 224x224; odd sizes round up at every stride
        assert counts["backbone"] == pytest.approx(4.09e9 * (513 / 224) ** 2, rel=0.06)
    stride = config.model.output_stride
    assert counts["class_tokens"] == (512 // stride + 1) ** 2 * 256 * 59
    assert (counts["axial_attention"] > 0) == method.startswith("hfgd")
    assert parameters["backbone"] == 23_508_032  # torchvision's resnet50 without its last layer
    text = report.report(counts, parameters)
    assert text.splitlines()[-1] == f"total: {sum(counts.values()) / 1e9:.2f} GMACs"


def test_training_only_work_is_not_counted():
    """The guide branch and the probe cost nothing at inference."""
    totals = []
    for probe in (False, True):
        config = configuration.default()
        configuration.set_method(config, "sfpn")
        configuration.set_tiny(config)
        config.model.guidance.probe = probe
        totals.append(report.inference_macs(config, (65, 65))[0])
    assert totals[0] == totals[1]


@pytest.mark.parametrize("text", ["513", "0x513", "513x", "axb", "513x513x3", "99999x5", "-1x5"])
def test_sizes_that_are_none(text):
    with pytest.raises(UserError, match="HEIGHTxWIDTH"):
        report.parse_size(text)


def test_size():
    assert report.parse_size("513x1025") == (513, 1025)


def _command(*arguments):
    command = [sys.executable, "-m", "hfgd_jax.tools.macs", *arguments]
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120)


def test_command():
    done = _command("--config=configs/paper.py:table9/hfgd_os4", "--size=513x513")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "total: 71.78 GMACs"
    assert "guidance (axial attention, class tokens): 14.0%" in done.stdout


def test_command_with_a_wrong_size():
    done = _command("--config=configs/paper.py", "--size=513")
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: --size=513: want HEIGHTxWIDTH, such as 513x513"]
