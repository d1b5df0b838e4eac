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

from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from hfgd_jax.evaluation import evaluator
from hfgd_jax.export import exporter
from hfgd_jax.inference import predict, tiles, views
from hfgd_jax.runs import saved_config
from hfgd_jax.runs.system import load, open_data
from hfgd_jax.runtime import processes, sharding, shell, storage
from hfgd_jax.runtime.signals import Stop
from hfgd_jax.training import loop

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with arguments after a colon.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, pictures.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval", "predict", "export"], "What to do.")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "eval, predict, export: latest, best or a step; eval: several, with commas, or watch."
)
_INPUT = flags.DEFINE_string(
    "input", None, "predict: an image, a folder of images, a glob, or split:NAME of the run's data set."
)
_OUTPUT = flags.DEFINE_string("output", None, "predict: folder for masks and overlays; export: the bundle's.")
_IDS = flags.DEFINE_enum(
    "ids",
    "train",
    ["train", "raw"],
    "predict: masks of train ids in colour, or of the data set's own label ids.",
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "predict, export: replace what an earlier one wrote.")
_DTYPES = flags.DEFINE_list("dtypes", list(exporter.DTYPES), "export: variants of the program.")
_FOLD = flags.DEFINE_bool("fold_batch_norm", False, "export: fold batch norms into the convolutions before.")
_SPLIT = "split:"
flags.mark_flags_as_required(["workdir"])


@flags.multi_flags_validator(
    ["mode", "input", "output", "checkpoint", "ids", "dtypes", "fold_batch_norm"],
    "--mode and the other flags disagree",
)
def _flags_belong_to_mode(values: dict) -> bool:
    mode = values["mode"]
    for name, modes in (("input", ("predict",)), ("output", ("predict", "export"))):
        if mode in modes and not values[name]:
            raise flags.ValidationError(f"--{name}: needed with --mode={mode}")
        if mode not in modes and values[name]:
            raise flags.ValidationError(f"--{name}={values[name]}: only with --mode={' or '.join(modes)}")
    if mode != "predict" and values["ids"] != "train":
        raise flags.ValidationError(f"--ids={values['ids']}: only with --mode=predict")
    _check_export(mode, values["dtypes"], values["fold_batch_norm"])
    several = values["checkpoint"] == "watch" or "," in (values["checkpoint"] or "")
    if mode in ("predict", "export") and several:
        raise flags.ValidationError(f"--checkpoint={values['checkpoint']}: only with --mode=eval; name one")
    if mode == "train" and values["checkpoint"]:
        raise flags.ValidationError(
            f"--checkpoint={values['checkpoint']}: only with --mode=eval, predict or export; "
            "training goes on from the latest"
        )
    return True


def _check_export(mode: str, dtypes: list[str], fold_batch_norm: bool) -> None:
    if mode != "export" and (fold_batch_norm or tuple(dtypes) != exporter.DTYPES):
        name = "fold_batch_norm" if fold_batch_norm else "dtypes"
        raise flags.ValidationError(f"--{name}: only with --mode=export")
    if not dtypes or len(set(dtypes)) != len(dtypes) or set(dtypes) - set(exporter.DTYPES):
        raise flags.ValidationError(
            f"--dtypes={','.join(dtypes)}: want {' or '.join(exporter.DTYPES)}, or both"
        )


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
    processes.start()
    config, workdir = _CONFIG.value, _WORKDIR.value
    checkpoint = _CHECKPOINT.value or "latest"
    storage.resolve(workdir, "--workdir", arrays=True)
    if _MODE.value == "train":
        return loop.run(config, workdir)
    if _MODE.value == "eval":
        return evaluator.run(config, workdir, checkpoint)
    processes.require_one_process(_MODE.value)
    if _MODE.value == "export":
        return exporter.run(
            config,
            workdir,
            checkpoint,
            _OUTPUT.value,
            dtypes=_DTYPES.value,
            fold_batch_norm=_FOLD.value,
            overwrite=_OVERWRITE.value,
        )
    return _predict(config, workdir, checkpoint)


def _predict(config: ConfigDict, workdir: str, checkpoint: str) -> int:
    name = _INPUT.value.removeprefix(_SPLIT)
    source = open_data(config, name) if _INPUT.value.startswith(_SPLIT) else _INPUT.value
    system, variables, step, table = load(config, workdir, checkpoint)
    print(f"predicting with step {step} of {workdir}")
    variables = sharding.local_copy(system.mesh, variables)
    seen = views.Inference(system.model, config)
    with Stop().listening() as stop:
        report = predict.run(
            tiles.TiledPredictor(seen, variables, system.mean_pixel),
            source,
            _OUTPUT.value,
            table=table,
            ids=_IDS.value,
            overwrite=_OVERWRITE.value,
            should_stop=stop,
        )
    print(f"the model was compiled for {len(seen.shapes)} {'shape' if len(seen.shapes) == 1 else 'shapes'}")
    print(report.summary())
    return stop.exit_code or report.exit_code


if __name__ == "__main__":
    sys.argv = with_saved_config(sys.argv)
    shell.run(main, on_failure=processes.end_now)
