"""Every network of the paper's tables: a training step in miniature, and its shapes at full size."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hfgd_jax import geometry as geo
from hfgd_jax.losses import total_loss
from hfgd_jax.models import BACKBONES, build_model
from hfgd_jax.models.layers import Conv
from hfgd_jax.runs import optim
from hfgd_jax.tools.paper import load_config_file

paper = load_config_file()
CLASSES = 5
SMALL = {
    "channels": 8,
    "context_channels": 12,
    "wide_channels": 16,
    "query_channels": 4,
    "attention_heads": 2,
}
FAMILIES = ("resnet18", "convnext_a", "swin_t")  # what `tiny` makes of the paper's backbones


def distinct(arguments, *parts):
    """The first row of every set of rows that agree in these parts of the config."""
    first = {}
    for row in paper.ROWS:
        config = paper.get_config(row + arguments)
        fields = config.to_dict()
        first.setdefault(json.dumps([fields[part] for part in parts], sort_keys=True), row)
    return list(first.values())


class Light(nn.Module):
    """Strided convolutions in place of a backbone, with its output stride."""

    output_stride: int

    @nn.compact
    def __call__(self, x, train):
        x, pyramid = Conv(8, 3, 2, name="stem")(x), {}
        for level in (4, 8, 16, 32):
            conv = Conv(8, 3, 2 if level <= self.output_stride else 1, use_bias=True, name=f"stage_{level}")
            x = pyramid[level] = nn.relu(conv(x))
        return pyramid


@pytest.fixture
def light_backbones(monkeypatch):
    for name in FAMILIES:
        build = lambda output_stride, **others: Light(output_stride)  # noqa: E731
        monkeypatch.setitem(BACKBONES, name, BACKBONES["resnet18"]._replace(build=build))


def kind_and_weight(name, loss_config):
    """Whose loss a part of the total is, and what it weighs."""
    if name.startswith(("car_", "regions")):
        return "context", loss_config[name.partition("_")[0]]
    return name.removesuffix("_dice"), loss_config["dice" if name.endswith("_dice") else name]


def expected_reach(guidance, groups):
    """The groups of parameters that each kind of loss trains, from the row's switches (paper, Sec. 3.1)."""
    frozen = {"class_tokens"} if guidance.tokens and guidance.stop_gradient else set()
    protected = {"backbone", "context"} if guidance.protect else set()
    return {
        "student": groups - {"probe"} - frozen - protected,
        "teacher": {"backbone", "context", "class_tokens"},
        "probe": {"probe"} if guidance.probe_stop_gradient else {"probe", "backbone"},
        "context": {"backbone", "context"},  # CAR and OCR's regions
    }


@pytest.mark.parametrize("row", distinct(",tiny", "model", "loss", "optim"))
def test_a_training_step(row, model_tools, light_backbones):
    config = paper.get_config(f"{row},tiny")
    config.model.update(SMALL)
    model, variables = model_tools.build(config.model, CLASSES)
    rng = np.random.default_rng(1)
    size = geo.grid_size((64, 64), config.model.geometry)
    images = rng.integers(0, 256, (2, *size, 3)).astype(np.uint8)
    labels = jnp.asarray(rng.integers(0, CLASSES, (2, *size)), jnp.uint8)

    def losses(params):
        outputs, _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        total, parts = total_loss(
            outputs, labels, config.loss, num_classes=CLASSES, geometry=config.model.geometry
        )
        kinds = {}
        for name, value in parts.items():
            kind, weight = kind_and_weight(name, config.loss)
            kinds[kind] = kinds.get(kind, 0.0) + weight * value
        return kinds, total

    params = variables["params"]
    values, pull, total = jax.vjp(losses, params, has_aux=True)
    assert np.isfinite(total) and np.isclose(sum(values.values()), total, rtol=1e-5)
    guidance = config.model.guidance
    assert ("teacher" in values, "probe" in values) == (guidance.tokens, guidance.probe)
    gradients = {kind: pull({k: jnp.float32(k == kind) for k in values})[0] for kind in values}

    nonzero = {kind: jax.tree.map(jnp.any, gradient) for kind, gradient in gradients.items()}
    for kind, tree in nonzero.items():
        reached = {group for group in params if any(jax.tree.leaves(tree[group]))}
        assert reached == expected_reach(guidance, set(params))[kind], kind
    for (path, leaf), *others in zip(
        *map(jax.tree_util.tree_leaves_with_path, nonzero.values()), strict=True
    ):
        trained = leaf or any(other for _, other in others)
        assert trained or path[-1].key != "kernel", f"nothing trains {jax.tree_util.keystr(path)}"

    gradient = jax.tree.map(lambda *parts: sum(parts), *gradients.values())
    optimizer = optim.make_optimizer(config.optim, config.train.steps)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))
    assert all(any(jnp.any(leaf) for leaf in jax.tree.leaves(updates[group])) for group in params)


@pytest.mark.parametrize("row", distinct("", "model"))
def test_full_size_shapes(row):
    config = paper.get_config(row)
    m, classes, crop = config.model, config.data.num_classes, tuple(config.data.crop)
    model = build_model(m, classes, config.train.dtype)
    images = jax.ShapeDtypeStruct((2, *crop, 3), jnp.uint8)
    # While it initialises a model computes what it does in training.
    init = lambda x: model.init_with_output(jax.random.key(0), x, train=True)  # noqa: E731
    outputs, variables = jax.eval_shape(init, images)

    grid = geo.grid_size(crop, m.geometry)
    coarse = geo.feature_size(grid, m.backbone.output_stride, m.geometry)
    wanted = {
        "logits": (*geo.feature_size(grid, m.output_stride, m.geometry), classes),
        "guide_logits": (*coarse, classes) if m.guidance.tokens else None,
        "probe_logits": (*coarse, classes) if m.guidance.probe else None,
        "car_features": (*coarse, 512) if m.context in ("sa_car", "cae") else None,
        "region_logits": (*coarse, classes) if m.context == "ocr" else None,
    }
    for name, shape in wanted.items():
        value = getattr(outputs, name)
        assert (value is None) == (shape is None), name
        assert value is None or (value.shape == (2, *shape) and value.dtype == jnp.float32), name
    assert variables["params"]["class_tokens"]["kernel"].shape == (256, classes)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
