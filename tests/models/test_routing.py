"""Which loss trains which part, for every combination of switches (paper, Sec. 3.1)."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hfgd_jax import config as configs
from hfgd_jax.errors import UserError
from hfgd_jax.losses import total_loss
from hfgd_jax.models import CONTEXTS, UPSAMPLERS, build_model

CLASSES = 5


def combinations():
    """Every choice of switches that `validate` allows, for SFPN with identity and CAE.

    Of the others, every context and every upsampler on its own, and within the full HFGM.
    """
    for context, tokens, protect, axial in itertools.product(("identity", "cae"), *[(False, True)] * 3):
        for probe, stop in ((False, False), (True, False), (True, True)):
            if not (tokens and probe):
                yield "sfpn", context, tokens, protect, axial, probe, stop
    for context in ("sa", "sa_car"):
        yield "sfpn", context, False, False, False, False, False
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


def gradients(model, variables, images, labels, loss_config, *, car_with_teacher=False):
    """The gradient of each loss alone, by its name; or of the CAR losses with the teacher's."""

    def losses(params):
        outputs, _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        found = losses_of(outputs, labels, loss_config)
        if car_with_teacher:
            found["teacher"] += found.pop("car")
        return found

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


@pytest.mark.parametrize("switches", list(combinations()), ids=lambda s: "-".join(map(str, s)))
def test_losses_reach_what_they_should(switches, model_tools, light_backbone):
    upsampler, context, tokens, protect, axial, probe, stop = switches
    residual = upsampler == "u_sfpn" and tokens  # one of the guided ones has it
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
        guidance__residual=residual,
        guidance__probe=probe,
        guidance__probe_stop_gradient=stop,
    )
    model, variables = model_tools.build(config.model, CLASSES)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (2, 65, 65, 3)).astype(np.uint8)
    labels = jnp.asarray(rng.integers(0, CLASSES, (2, 65, 65)), jnp.uint8)
    split = lambda v: gradients(model, v, images, labels, config.loss)  # noqa: E731
    # One operation at a time is quick where other cases have compiled the same ones. PPM and FaPN have many
    # of shapes of their own.
    found = (jax.jit(split) if {"ppm", "fapn"} & {context, upsampler} else split)(variables)

    groups = set(variables["params"])
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
        assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(found["car"]["context"]["out"]))
    if context == "ocr":
        others = set(variables["params"]["context"]) - {"regions", "region_tokens"}
        check_reached(found["regions"], {"backbone", "context"}, "regions", skip=others)
        assert not any(
            np.any(leaf) for leaf in jax.tree.leaves([found["regions"]["context"][k] for k in others])
        )


def test_hfgd_with_a_resnet(model_tools):
    """The teacher trains backbone, context and tokens; the student trains upsampler and attention alone."""
    config = model_tools.config("hfgd")
    model, variables = model_tools.build(config.model, CLASSES)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (2, 65, 65, 3)).astype(np.uint8)
    labels = jnp.asarray(rng.integers(0, CLASSES, (2, 65, 65)), jnp.uint8)
    split = lambda v: gradients(model, v, images, labels, config.loss, car_with_teacher=True)  # noqa: E731
    found = jax.jit(split)(variables)
    check_reached(found["student"], {"upsampler", "axial_attention"}, "student")
    check_reached(found["teacher"], {"backbone", "context", "class_tokens"}, "teacher")


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


def test_inference_computes_the_prediction_alone(model_tools):
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


def test_every_method_builds_with_the_paper_backbones():
    for method in configs.METHODS:
        config = configs.default()
        configs.set_method(config, method)
        configs.validate(config)
        model = build_model(config.model, 59, "bfloat16")
        images = jax.ShapeDtypeStruct((1, 97, 97, 3), jnp.uint8)
        variables = jax.eval_shape(lambda x, m=model: m.init(jax.random.key(0), x, train=False), images)
        outputs = jax.eval_shape(lambda v, x, m=model: m.apply(v, x, train=False), variables, images)
        side = 96 // config.model.output_stride + 1
        assert outputs.logits.shape == (1, side, side, 59)
        assert outputs.logits.dtype == jnp.float32
