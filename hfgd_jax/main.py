"""The front door.

    python -m hfgd_jax.main --config configs/X.py --workdir DIR
    python -m hfgd_jax.main --workdir DIR --mode eval
    python -m hfgd_jax.main --workdir DIR --mode predict --input PHOTOS --output OUT
    python -m hfgd_jax.main --workdir DIR --mode predict --input split:test --ids raw --output OUT
    python -m hfgd_jax.main --workdir DIR --mode export --checkpoint best --output BUNDLE

    python -m hfgd_jax.main ... --coordinator HOST:PORT --processes N --process I (runtime/processes.py)

`--config` may be left out where `--workdir` holds a run. `--config.FIELD=VALUE` overrides a field.
"""

import sys
from typing import Any, Literal

from hfgd_jax.runtime import interrupts

if __name__ == "__main__":
    interrupts.while_loading()

from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from hfgd_jax.config import describe
from hfgd_jax.errors import UserError
from hfgd_jax.evaluation import evaluator
from hfgd_jax.export import exporter
from hfgd_jax.inference import predict
from hfgd_jax.runs import saved_config
from hfgd_jax.runs.system import load, open_data
from hfgd_jax.runs.tracking import Tracker
from hfgd_jax.runtime import processes, shell, storage
from hfgd_jax.runtime.signals import Stop
from hfgd_jax.training import loop

MODES = {
    "train": "Trains a model, or goes on training it.",
    "eval": "Scores checkpoints of a run.",
    "predict": "Writes masks and overlays of images.",
    "export": "Writes a checkpoint as a bundle that runs with jax and numpy alone.",
}
# Flags that belong to some modes only.
OF_MODES = {
    "wandb": ("train",),
    "checkpoint": ("eval", "predict", "export"),
    "input": ("predict",),
    "output": ("predict", "export"),
    "ids": ("predict",),
    "overwrite": ("predict", "export"),
    "dtypes": ("export",),
    "fold_batch_norm": ("export",),
    "orbax": ("export",),
}
_NEEDED = ("input", "output")
_DEFAULTS = {"ids": "train", "overwrite": False, "dtypes": list(exporter.DTYPES)}
_DEFAULTS |= {"fold_batch_norm": False, "orbax": False}
_SPLIT = "split:"


def define_flags() -> None:
    """The front door's flags."""
    config_flags.DEFINE_config_file("config", None, "Config file, with arguments after a colon.")
    flags.DEFINE_string("workdir", None, "Run directory: checkpoints, metrics, images; needed.")
    flags.DEFINE_enum("mode", "train", list(MODES), "What to do.")
    flags.DEFINE_string(
        "checkpoint",
        None,
        "eval, predict, export: latest, best or a step; eval: several, with commas, or watch.",
    )
    flags.DEFINE_string(
        "input", None, "predict: an image, a folder of images, a glob, or split:NAME of the run's data set."
    )
    flags.DEFINE_string("output", None, "predict: folder for masks and overlays; export: the bundle's.")
    flags.DEFINE_enum(
        "ids",
        _DEFAULTS["ids"],
        ["train", "raw"],
        "predict: masks of train ids in colour, or of the data set's own ids.",
    )
    flags.DEFINE_bool(
        "overwrite", _DEFAULTS["overwrite"], "predict, export: replace what an earlier one wrote."
    )
    flags.DEFINE_list("dtypes", _DEFAULTS["dtypes"], "export: variants of the program.")
    flags.DEFINE_bool(
        "fold_batch_norm",
        _DEFAULTS["fold_batch_norm"],
        "export: fold batch norms into the convolutions before.",
    )
    flags.DEFINE_bool(
        "orbax", _DEFAULTS["orbax"], "export: the parameters as an orbax checkpoint, too, as large again."
    )
    flags.DEFINE_string("wandb", None, "train: a project of Weights & Biases that gets the curves, too.")
    flags.DEFINE_bool("print_config", False, "Print every field, its value and where that is from, and end.")
    processes.define_flags()


def check_mode(values: dict[str, Any]) -> None:
    """Makes sure that the flags, by name, go with `mode`.

    Raises:
        UserError: a flag of another mode, one that is missing, or a value that the mode lacks.
    """
    mode = values["mode"]
    for name, modes in OF_MODES.items():
        value = values[name]
        if mode not in modes and value != _DEFAULTS.get(name):
            shown = f"={value}" if isinstance(value, str) else ""
            raise UserError(f"--{name}{shown}: only with --mode={' or '.join(modes)}")
        if mode in modes and name in _NEEDED and not value:
            raise UserError(f"--{name}: needed with --mode={mode}")
    several = values["checkpoint"] == "watch" or "," in (values["checkpoint"] or "")
    if mode != "eval" and several:
        raise UserError(f"--checkpoint={values['checkpoint']}: only with --mode=eval; name one")
    dtypes = values["dtypes"]
    if not dtypes or len(set(dtypes)) != len(dtypes) or set(dtypes) - set(exporter.DTYPES):
        raise UserError(f"--dtypes={','.join(dtypes)}: want {' or '.join(exporter.DTYPES)}, or both")


def with_saved_config(argv: list[str]) -> list[str]:
    """`argv` with the workdir's own config as `--config`, where none is given."""
    if any(arg.lstrip("-").split("=")[0] == "config" for arg in argv[1:]):
        return argv
    for position, arg in enumerate(argv):
        name, has_value, value = arg.lstrip("-").partition("=")
        if arg.startswith("-") and name == "workdir":
            workdir = value if has_value else next(iter(argv[position + 1 :]), "")
            saved = epath.Path(saved_config.__file__)
            return [argv[0], f"--config={saved}:{workdir}", *argv[1:]]
    return argv


def main(_: list[str]) -> int:
    """Does what `--mode` says; returns the exit code."""
    values = flags.FLAGS
    check_mode({name: values[name].value for name in ("mode", *OF_MODES)})
    config, workdir = values.config, values.workdir
    if config is None:
        raise UserError("--config: needed, where --workdir names no run")
    if values.print_config:
        print(describe.values(config, config_flags.get_override_values(values["config"])))
        return 0
    if not workdir:
        raise UserError("--workdir: needed")
    processes.start()
    checkpoint = values.checkpoint or "latest"
    storage.resolve(workdir, "--workdir", arrays=True)
    if values.mode == "train":
        mirror = Tracker(values.wandb, workdir, config) if values.wandb else None
        return loop.run(config, workdir, mirror)
    if values.mode == "eval":
        return evaluator.run(config, workdir, checkpoint)
    processes.require_one_process(values.mode)
    if values.mode == "export":
        return exporter.run(
            config,
            workdir,
            checkpoint,
            values.output,
            dtypes=values.dtypes,
            fold_batch_norm=values.fold_batch_norm,
            orbax=values.orbax,
            overwrite=values.overwrite,
        )
    return predict_images(
        config, workdir, checkpoint, values.input, values.output, ids=values.ids, overwrite=values.overwrite
    )


def predict_images(
    config: ConfigDict,
    workdir: str,
    checkpoint: str,
    inputs: str,
    output: str,
    *,
    ids: Literal["train", "raw"] = "train",
    overwrite: bool = False,
) -> int:
    """Predicts images, or a split of the run's data set, with a run's checkpoint; returns the exit code.

    Args:
        config, workdir, checkpoint: the run, and `latest`, `best` or a step.
        inputs: as `--input`.
        output, ids, overwrite: see `predict.run`.
    """
    name = inputs.removeprefix(_SPLIT)
    source = open_data(config, name) if inputs.startswith(_SPLIT) else inputs
    predict.plan(source, output, ids=ids, overwrite=overwrite)  # before a model is loaded
    run = load(config, workdir, checkpoint).local()
    print(f"predicting with step {run.step} of {workdir}")
    predictor = run.predictor()
    with Stop().listening() as stop:
        report = predict.run(
            predictor, source, output, table=run.table, ids=ids, overwrite=overwrite, should_stop=stop
        )
    shapes = len(predictor.inference.shapes)
    print(f"the model was compiled for {shapes} {'shape' if shapes == 1 else 'shapes'}")
    print(report.summary())
    return stop.exit_code or report.exit_code


if __name__ == "__main__":
    sys.argv = with_saved_config(sys.argv)
    define_flags()
    shell.run(main, on_failure=processes.end_now)
