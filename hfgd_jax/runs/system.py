"""Builds what a config describes: model, optimizer, mesh, the state to start from, and the data."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from hfgd_jax import config as configuration
from hfgd_jax import losses
from hfgd_jax.data import builders
from hfgd_jax.data.class_counts import class_counts
from hfgd_jax.data.labels import LabelTable
from hfgd_jax.data.prepared import Split, open_split
from hfgd_jax.errors import UserError
from hfgd_jax.inference.tiles import TiledPredictor
from hfgd_jax.inference.views import Inference
from hfgd_jax.models import backbones, build_model
from hfgd_jax.runs import checkpoints, optim
from hfgd_jax.runtime import sharding
from hfgd_jax.runtime.progress import Progress
from hfgd_jax.weights import pretrained, sources


class TrainState(flax.struct.PyTreeNode):
    """All that a step changes. `step` is int32, `rng` a uint32 key `[2]`; parameters are float32.

    `average` is the moving average of `variables` where `train.ema_decay` is above 0, else None.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    rng: jax.Array
    average: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """What is trained: the variables that the model is applied with in a step."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def model(self) -> dict[str, Any]:
        """What is evaluated, and a checkpoint's `model` item: the average where there is one."""
        return self.variables if self.average is None else self.average

    @property
    def training(self) -> dict[str, Any]:
        """The rest: a checkpoint's `training` item; where there is an average, with `variables`."""
        rest = {"step": self.step, "opt_state": self.opt_state, "rng": self.rng}
        return rest if self.average is None else rest | {"variables": self.variables}

    @classmethod
    def of(cls, model: dict[str, Any], training: dict[str, Any]) -> "TrainState":
        """The state that has these items, `model` and `training`."""
        if "variables" not in training:
            return cls(**model, **training)
        rest = {key: value for key, value in training.items() if key != "variables"}
        return cls(**training["variables"], **rest, average=model)


@dataclasses.dataclass(frozen=True)
class System:
    """The mesh, the model and the optimizer that a config describes; made once per process."""

    config: ConfigDict
    mesh: Mesh | AbstractMesh
    model: nn.Module
    optimizer: optax.GradientTransformation

    @property
    def mean_pixel(self) -> np.ndarray:
        """RGB 0-255 of the padding, `[3]`."""
        backbone = self.config.model.backbone
        return np.asarray(backbones.normalization(backbone.name, backbone.normalization)[0])


def build(config: ConfigDict, mesh: Mesh | AbstractMesh | None = None) -> System:
    """Makes mesh, model and optimizer.

    Args:
        config: of a run.
        mesh: in place of `config.mesh`'s on the devices here; an abstract one is for what is only lowered.

    Raises:
        UserError: the config is not valid here.
    """
    configuration.validate(config)
    sources.check(config.model.backbone.weights)
    mesh = sharding.make_mesh(config.mesh) if mesh is None else mesh
    dtype = jnp.dtype(config.train.dtype)
    constrain = functools.partial(sharding.along_batch, mesh) if config.mesh.constrain_decoder else None
    return System(
        config,
        mesh,
        build_model(
            config.model,
            config.data.num_classes,
            dtype,
            constrain,
            freeze_backbone=config.optim.backbone_rate == 0.0,
        ),
        optim.make_optimizer(config.optim, config.train.steps),
    )


def make_init(system: System) -> Callable[[jax.Array], TrainState]:
    """`init(key)`: a fresh state; random weights."""

    def init(key: jax.Array) -> TrainState:
        params_key, rng = jax.random.split(key)
        variables = system.model.init(params_key, jnp.zeros((1, 65, 65, 3)), train=True)
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            opt_state=system.optimizer.init(variables["params"]),
            rng=rng,
        )
        return _with_average(system, state)

    return init


def _with_average(system: System, state: TrainState) -> TrainState:
    """The state with its average, where there is one: a copy, since a step reuses the memory of both."""
    if not system.config.train.ema_decay:
        return state
    return state.replace(average=jax.tree.map(jnp.copy, state.variables))


def abstract_state(system: System) -> TrainState:
    """What `make_init` gives, as `ShapeDtypeStruct`s with the shardings of the system's mesh."""
    shapes = jax.eval_shape(make_init(system), jax.random.PRNGKey(0))
    return sharding.placed(sharding.state_shardings(system.mesh, shapes), shapes)


def initial_state(
    system: System, restore_from: checkpoints.Checkpoints | None = None
) -> tuple[TrainState, str]:
    """The state to start from, on the mesh, and a line on where it comes from.

    Precedence: the run's own latest checkpoint that is whole; else `model.backbone.weights`; else random
    weights.
    """
    abstract = abstract_state(system)
    found = restore_from.resume(abstract.model, abstract.training) if restore_from else None
    if found is not None:
        step, model, training = found
        return TrainState.of(model, training), f"resumed from the checkpoint of step {step}"
    backbone = system.config.model.backbone
    if backbone.weights:
        sources.locate(backbone.weights)  # raises before anything is compiled
    # Random numbers are drawn once: on a CPU, compiling the drawing well takes longer than drawing.
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    init = jax.jit(make_init(system), out_shardings=shardings, compiler_options=quick)
    state = init(np.asarray(jax.random.PRNGKey(system.config.train.seed)))
    if not backbone.weights:
        return state, "random weights (config.model.backbone.weights is empty)"
    random = jax.device_get(sharding.local_copy(system.mesh, state.variables))
    variables, report = pretrained.load_backbone(random, backbone.name, backbone.weights)
    placed = jax.device_put(variables, jax.tree.map(lambda x: x.sharding, abstract.variables))
    return _with_average(system, state.replace(**placed)), report.summary()


def open_data(config: ConfigDict, split: str) -> Split:
    """Opens a split, making the embedded data set first where it is missing.

    Raises:
        UserError: the data set is missing or has another number of classes than the config.
    """
    data = config.data
    if data.dataset in builders.EMBEDDED:  # by every process: hosts need not share their disks
        builders.prepare_if_missing(data.dataset, data.data_dir)
    opened = open_split(data.data_dir, data.dataset, split)
    if opened.table.num_classes != data.num_classes:
        raise UserError(
            f"config.data.num_classes={data.num_classes}: data set {data.dataset!r} has "
            f"{opened.table.num_classes} classes ({', '.join(opened.table.classes)})"
        )
    return opened


def balanced(system: System, split: Split) -> System:
    """The system with the class weights that `loss.balance` stands for, from the labels of the split.

    The weights are in `config.loss.class_weights` of the system that is returned; the saved config stays as
    it was. They are computed from integer counts of the same files, so that every process, and a run that
    goes on, has the same ones to the last bit.

    Raises:
        UserError: a label cannot be read, unless `data.skip_corrupt`.
    """
    if system.config.loss.balance == "none":
        return system
    report = Progress() if jax.process_index() == 0 else None
    counts = class_counts(split, skip_corrupt=system.config.data.skip_corrupt, report=report)
    config = system.config.copy_and_resolve_references()
    config.loss.update({"balance": "none", "class_weights": losses.median_frequency(*counts)})
    return dataclasses.replace(system, config=config)


class Trained(NamedTuple):
    """A checkpoint of a run, loaded.

    Attributes:
        system: the model, and the run's config in `system.config`.
        variables: `params` and `batch_stats`, on the system's mesh; of `local`, on one device.
        step: of the checkpoint.
        table: the classes that it was trained on.
    """

    system: System
    variables: dict[str, Any]
    step: int
    table: LabelTable

    def local(self) -> "Trained":
        """The same on one of this process's devices, to predict with apart; for all processes to call."""
        return self._replace(variables=sharding.local_copy(self.system.mesh, self.variables))

    def predictor(self, config: ConfigDict | None = None, sides: Sequence[int] = ()) -> TiledPredictor:
        """What predicts images of any size; the variables have to be `local`.

        Args:
            config: whose `eval` it goes by; None: the run's.
            sides: see `TiledPredictor`.
        """
        inference = Inference(self.system.model, config or self.system.config)
        return TiledPredictor(inference, self.variables, self.system.mean_pixel, sides=sides)


def load(config: ConfigDict, workdir: str, which: str) -> Trained:
    """A checkpoint of a run, on the mesh of its config.

    Args:
        config: of the run.
        workdir: where the run is.
        which: `latest`, `best` or a step.

    Raises:
        UserError: no such checkpoint, one of another model, or a damaged one (see `restore_model`).
    """
    system = build(config)
    saved = checkpoints.Checkpoints(workdir, read_only=True)
    step, variables, table = saved.restore_model(which, abstract_state(system).model)
    return Trained(system, variables, step, table)
