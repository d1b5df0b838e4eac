"""Which loss trains which part, for every combination of switches (paper, Sec. 3.1)."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hfgd_jax import config as configs
from hfgd_jax.errors import UserError
from hfgd_jax.losses import total_loss
from hfgd_jax.models import CONTEXTS, UPSAMPLERS

CLASSES = 5


def switches():
    """Every choice of HFGM's switches for SFPN with identity and CAE, and the probe's."""
    for context, tokens, protect, axial in itertools.product(("identity", "cae"), *[(False, True)] * 3):
        yield "sfpn", context, tokens, protect, axial, False, False
    for context, protect, stop in itertools.product(("identity", "cae"), *[(False, True)] * 2):
        yield "sfpn", context, False, protect, True, True, stop


def parts():
    """Every context and every upsampler on its own, and within the full HFGM."""
    yield "sfpn", "identity", False, False, False, False, False
    yield "sfpn", "identity", False, True, True, True, True
    for context in ("sa_car", "cae"):
        yield "sfpn", context, True, True, True, False, False
    for context in CONTEXTS:
        yield "none", context, False, False, False, False, False
    around = {"u_sfpn": "ocr", "upernet": "ppm", "deeplabv3plus": "aspp"}
    for upsampler in (name for name in UPSAMPLERS if name not in ("none", "sfpn")):
        if upsampler != "fapn":  # slow to compile; its own tests see the gradient reach every level
            yield upsampler, "identity", False, False, False, False, False
        yield upsampler, around.get(upsampler, "identity"), True, True, True, False, False


def losses_of(outputs, labels, loss_config):
    """The cross-entropies by name, and the sum of the CAR losses where there are any."""
    _, parts = total_loss(outputs, labels, loss_config, num_classes=CLASSES, geometry="align_corners")
    car = [parts.pop(name) for name in sorted(parts) if name.startswith("car_")]
    return parts | ({"car": sum(car)} if car else {})


def gradients(model, variables, images, labels, loss_config):
    """The gradient of each loss alone, by its name."""

    def losses(params):
        outputs, _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return losses_of(outputs, labels, loss_config)

    values, pull = jax.vjp(losses, variables["params"])
    return {name: pull({other: jnp.float32(other == name) for other in values})[0] for name in values}


def check_reached(gradient, reached, loss, skip=()):
    """Every leaf of the groups in `reached` has a gradient, and no leaf of any other group has."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        names = tuple(key.key for key in path)
        size = float(jnp.max(jnp.abs(leaf)))
        if names[0] not in reached:
            assert size == 0, f"{loss} reaches {'/'.join(names)}"
        elif names[1:3] not in skip and names[1] not in skip:
            assert size > 1e-9, f"{loss} does not reach {'/'.join(names)}: {size}"


def built(case, model_tools):
    """The config, model and random variables of a case."""
    upsampler, context, tokens, protect, axial, probe, stop = case
    config = model_tools.config(
        context=context,
        upsampler=upsampler,
        output_stride=32 if upsampler == "none" else 4,
        channels=8,
        context_channels=12,
        wide_channels=16,
        query_channels=4,
        guidance__tokens=tokens,
        guidance__protect=protect,
        guidance__axial_attention=axial,
        guidance__residual=upsampler == "u_sfpn" and tokens,  # one of the guided ones has it
        guidance__probe=probe,
        guidance__probe_stop_gradient=stop,
    )
    return config, *model_tools.build(config.model, CLASSES)


def batch():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (2, 65, 65, 3)).astype(np.uint8)
    return images, jnp.asarray(rng.integers(0, CLASSES, (2, 65, 65)), jnp.uint8)


def check_case(case, found):
    """`found` is the gradient of each loss, or for each parameter whether there is one."""
    upsampler, context, tokens, protect, axial, probe, stop = case
    groups = set(found["student"])
    has_context = upsampler == "none" or context != "identity" or tokens
    expected = {"backbone", "class_tokens"}
    expected |= {"context"} if has_context else set()
    expected |= {"upsampler"} if upsampler != "none" else set()
    expected |= {"axial_attention"} if axial else set()
    expected |= {"probe"} if probe else set()
    assert groups == expected
    has_car = context in ("sa_car", "cae")
    kinds = {"student"} | ({"teacher"} if tokens else set()) | ({"probe"} if probe else set())
    kinds |= {"regions"} if context == "ocr" else set()
    assert set(found) == kinds | ({"car"} if has_car else set())

    student = groups - {"probe"}
    student -= {"class_tokens"} if tokens else set()
    student -= {"backbone", "context"} if protect else set()
    # The bias of the CAR layer is before a norm: only the CAR losses see it. That of a region's logits is
    # before a softmax over the positions: only the regions' own loss does.
    unseen = (("car_linear", "bias"), ("region_tokens", "bias"))
    check_reached(found["student"], student, "student", skip=unseen)
    if tokens:
        check_reached(found["teacher"], {"backbone", "context", "class_tokens"}, "teacher", skip=unseen)
    if probe:
        check_reached(found["probe"], {"probe"} if stop else {"probe", "backbone"}, "probe")
    if has_car:
        check_reached(found["car"], {"backbone", "context"}, "car", skip=("out",))
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(found["car"]["context"]["out"]))
    if context == "ocr":
        others = set(found["student"]["context"]) - {"regions", "region_tokens"}
        check_reached(found["regions"], {"backbone", "context"}, "regions", skip=others)
        assert not any(
            np.any(leaf) for leaf in jax.tree.leaves([found["regions"]["context"][k] for k in others])
        )


@pytest.mark.parametrize("case", list(switches()), ids=lambda s: "-".join(map(str, s)))
def test_losses_depend_on_what_the_switches_say(case, model_tools, light_backbone):
    """By the trace of the gradient, for every choice."""
    config, model, variables = built(case, model_tools)
    images, labels = batch()

    def losses(params):
        outputs, _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return losses_of(outputs, labels, config.loss)

    check_case(case, model_tools.reached(losses, variables["params"]))


@pytest.mark.parametrize("case", list(parts()), ids=lambda s: "-".join(map(str, s)))
def test_losses_reach_what_they_should(case, model_tools, light_backbone):
    """By the gradients' numbers, for every part."""
    config, model, variables = built(case, model_tools)
    images, labels = batch()
    split = lambda v: gradients(model, v, images, labels, config.loss)  # noqa: E731
    # One operation at a time is quick where other cases have compiled the same ones. PPM and FaPN have many
    # of shapes of their own.
    check_case(case, (jax.jit(split) if {"ppm", "fapn"} & {*case} else split)(variables))


@pytest.mark.parametrize(
    "changes",
    [
        {"guidance__tokens": True, "guidance__probe": True},
        {"guidance__probe_stop_gradient": True},
        {"upsampler": "none", "output_stride": 32, "guidance__tokens": True},
    ],
)
def test_other_combinations_are_refused(changes, model_tools):
    with pytest.raises(UserError):
        model_tools.config("sfpn", **changes)


def test_inference_computes_the_prediction_alone(model_tools, light_backbone):
    """One classification at inference, and neither probe nor CAR features."""
    images = jnp.zeros((1, 65, 65, 3), jnp.uint8)
    for method, changes, in_training in (
        ("hfgd", {}, 2),
        ("sfpn", {"guidance__probe": True}, 2),
        ("sa_car", {}, 1),
    ):
        model, variables = model_tools.build(model_tools.config(method, **changes).model, num_classes=7)
        outputs = jax.eval_shape(lambda v, m=model: m.apply(v, images, train=False), variables)
        assert outputs.guide_logits is outputs.probe_logits is outputs.car_features is None

        def classifications(train, model=model, variables=variables):
            apply = lambda v: model.apply(v, images, train=train, mutable=["batch_stats"])  # noqa: E731
            return str(jax.make_jaxpr(apply)(variables)).count(",7] = dot_general")

        assert classifications(False) == 1
        assert classifications(True) == in_training


@pytest.mark.parametrize("method", configs.METHODS)
def test_every_method_builds(method, model_tools, light_backbone):
    """At the paper's sizes: `test_paper_rows.py`."""
    config = model_tools.config(method)
    model, variables = model_tools.build(config.model, 59, "bfloat16")
    images = jax.ShapeDtypeStruct((1, 97, 97, 3), jnp.uint8)
    outputs = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, images)
    side = 96 // config.model.output_stride + 1
    assert outputs.logits.shape == (1, side, side, 59)
    assert outputs.logits.dtype == jnp.float32
