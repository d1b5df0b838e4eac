"""Every network of the paper's tables: what its losses train, its optimizer, its shapes at full size."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from hfgd_jax import geometry as geo
from hfgd_jax.losses import total_loss
from hfgd_jax.models import build_model
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


def distinct(arguments, *parts):
    """The first row of every set of rows that agree in these parts of the config."""
    first = {}
    for row in paper.ROWS:
        config = paper.get_config(row + arguments)
        fields = config.to_dict()
        first.setdefault(json.dumps([fields[part] for part in parts], sort_keys=True), row)
    return list(first.values())


def covering(part):
    """Rows that together have every value that any row has of every field of a part of the config."""
    seen, rows = set(), []
    for row in paper.ROWS:
        values = {*flatten_dict(paper.get_config(row)[part].to_dict(), sep=".").items()}
        rows += [row] * (not values <= seen)
        seen |= values
    return rows


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


@pytest.mark.parametrize("row", distinct(",tiny", "model", "loss"))
def test_every_loss_of_a_row_trains_what_it_should(row, model_tools, light_backbone):
    """From the step's trace alone: that a dependence is a gradient is seen in `test_routing.py`."""
    config = paper.get_config(f"{row},tiny")
    config.model.update(SMALL)
    model = build_model(config.model, CLASSES, "float32")
    size = geo.grid_size((64, 64), config.model.geometry)
    images, labels = np.zeros((2, *size, 3), np.uint8), jnp.zeros((2, *size), jnp.uint8)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    params = variables["params"]
    stats = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), variables["batch_stats"])

    def losses(params):
        both = {"params": params, "batch_stats": stats}
        outputs, _ = model.apply(both, images, train=True, mutable=["batch_stats"])
        _, parts = total_loss(
            outputs, labels, config.loss, num_classes=CLASSES, geometry=config.model.geometry
        )
        kinds = {}
        for name, value in parts.items():
            kind, weight = kind_and_weight(name, config.loss)
            kinds[kind] = kinds.get(kind, 0.0) + weight * value
        return kinds

    found = model_tools.reached(losses, params)
    guidance = config.model.guidance
    assert ("teacher" in found, "probe" in found) == (guidance.tokens, guidance.probe)
    for kind, tree in found.items():
        groups = {group for group in params if any(jax.tree.leaves(tree[group]))}
        assert groups == expected_reach(guidance, set(params))[kind], kind
    for (path, leaf), *others in zip(*map(jax.tree_util.tree_leaves_with_path, found.values()), strict=True):
        trained = leaf or any(other for _, other in others)
        assert trained or path[-1].key != "kernel", f"nothing trains {jax.tree_util.keystr(path)}"


@pytest.mark.parametrize("row", distinct("", "optim"))
def test_the_optimizer_of_a_row_moves_every_parameter(row):
    config = paper.get_config(row)
    optimizer = optim.make_optimizer(config.optim, config.train.steps)
    params = {"backbone": {"kernel": jnp.ones((3, 4))}, "upsampler": {"norm": {"scale": jnp.ones(4)}}}
    gradient, state = jax.tree.map(lambda x: 0.1 * x, params), optimizer.init(params)
    for _ in range(2):  # a warm-up may start at zero
        updates, state = optimizer.update(gradient, state, params)
    assert all(jnp.isfinite(leaf).all() and jnp.all(leaf < 0) for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize("row", covering("model"))
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
