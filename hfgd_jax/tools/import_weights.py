"""Checks other projects' weights and takes them over: a backbone's file, or a whole UPerNet as a run.

python -m hfgd_jax.tools.import_weights --backbone resnet50 --source FILE --output DIR
python -m hfgd_jax.tools.import_weights --source UPERNET_FOLDER --output WORKDIR
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath

from hfgd_jax import config as configuration
from hfgd_jax.data import class_names
from hfgd_jax.data.labels import IGNORE, LabelTable, voc_colours
from hfgd_jax.errors import UserError
from hfgd_jax.models import BACKBONES
from hfgd_jax.models.backbones.base import IMAGENET
from hfgd_jax.runs import checkpoints, system
from hfgd_jax.runtime import shell, storage
from hfgd_jax.weights import files, foreign, pretrained, sources
from hfgd_jax.weights.names import upernet
from hfgd_jax.weights.pretrained import Report

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"  # what transformers saves beside the weights


def import_backbone(
    backbone: str,
    source: epath.PathLike,
    output: epath.PathLike,
    *,
    naming: str = "",
    overwrite: bool = False,
) -> tuple[epath.Path, Report, list[str]]:
    """Checks a file against a backbone and writes it as `OUTPUT/BACKBONE.safetensors`, in float32.

    Args:
        backbone: a key of `BACKBONES`.
        source: see `weight_files.read`.
        output: a folder, made where missing.
        naming: of the file written; empty for the backbone's first.
        overwrite: replace a file that is there.

    Returns:
        The file, what became of the source's tensors, and the tensors loaded that `naming` has no name for
        (they are not in the file).

    Raises:
        UserError: the source is not the backbone's, or the file exists or cannot be written.
    """
    wanted = pretrained.find_naming(backbone, naming)
    path = storage.resolve(output, "--output") / f"{backbone}.safetensors"
    if path.exists() and not overwrite:
        raise UserError(f"{path}: exists; pass --overwrite to replace it, or choose another --output")
    empty = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), pretrained.backbone_shapes(backbone))
    variables, report = pretrained.load_backbone(empty, backbone, source)
    fresh = set(report.reinitialised)
    tensors = {
        name: value
        for name, value in pretrained.export(variables, wanted, root="backbone").items()
        if pretrained.leaf_path(wanted, name, root="backbone") not in fresh
    }
    files.write(path, tensors, overwrite=overwrite)
    lost = [leaf for leaf in pretrained.unnamed(variables, wanted, root="backbone") if leaf not in fresh]
    return path, report, lost


def import_model(source: epath.PathLike, workdir: epath.PathLike, *, overwrite: bool = False) -> Report:
    """Turns a saved `UperNetForSemanticSegmentation` into a run: its config and a checkpoint of step 0.

    Evaluation and prediction take the workdir as it is, and training goes on from it. The classes' names are
    the source's; where they are those of a data set here, its table is taken.

    Args:
        source: the folder that transformers saved, the weight file in it, or `hf:OWNER/NAME`.
        workdir: folder of the run, made where missing.
        overwrite: replace the step 0 of a run that was imported before; other runs are never touched.

    Raises:
        UserError: the source's structure or tensors are not those of a UPerNet here, its images are
            normalised otherwise, or the workdir holds something.
    """
    workdir = storage.resolve(workdir, "--output", arrays=True)
    weights = sources.locate(source, beside=(CONFIG, PREPROCESSOR))
    folder = weights if weights.is_dir() else weights.parent
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"--source={source}: a whole model needs the config.json beside its weights; "
            "pass --backbone to import a backbone"
        )
    given = storage.read_json(folder / CONFIG)
    config, table = foreign.config_of(given), label_table(given, _preprocessor(folder))
    config.data.dataset = table.name
    refuse_a_run(workdir, overwrite)
    whole = system.build(config)
    tensors = files.read(weights)
    naming = upernet.naming(config.model.backbone.name)
    state = jax.eval_shape(system.make_init(whole), jax.random.PRNGKey(0))
    pretrained.check(state.model, naming, tensors, source)
    variables, report = pretrained.fill(state.model, naming, tensors, source)
    if (workdir / "checkpoints").exists():
        (workdir / "checkpoints").rmtree()
    write_run(workdir, whole, variables, table)
    return report


def write_run(
    workdir: epath.Path, whole: system.System, variables: Mapping[str, Any], table: LabelTable
) -> None:
    """Writes config and checkpoint of step 0, from which any mode of `main` goes on.

    Args:
        workdir: holds no run.
        whole: what the config stands for.
        variables: of the model, `params` and `batch_stats`.
        table: of the labels.
    """
    seed = jax.random.PRNGKey(whole.config.train.seed)
    state = system.TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=whole.optimizer.init(variables["params"]),
        rng=seed,
    )
    saved = checkpoints.Checkpoints(workdir)
    saved.save(0, state.model, state.training, checkpoints.meta(0, whole.config, table))
    saved.close()
    storage.write_atomically(workdir / "config.json", configuration.to_json(whole.config))


def label_table(given: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> LabelTable:
    """The classes that a transformers config names, with generated colours, or the data set's that has them.

    Args:
        given: the content of `config.json`. Names that occur twice get their number.
        preprocessor: that of `preprocessor_config.json`; it says whether raw label 0 is ignored.

    Raises:
        UserError: numbers that are not 0 to K - 1, or too many classes.
    """
    labels = given.get("id2label") or {i: f"LABEL_{i}" for i in range(foreign.DEFAULT_LABELS)}
    names = {int(i): " ".join(str(name).split()) for i, name in labels.items() if str(i).isdigit()}
    if sorted(names) != list(range(len(labels))):
        raise UserError("config.json: id2label: want a name for each class from 0 on")
    listed = [names[i] for i in range(len(names))]
    classes = tuple(f"{n} ({i})" if listed.count(n) > 1 else n for i, n in enumerate(listed))
    if table := class_names.known_table(classes):
        return table
    shift = 1 if preprocessor.get("do_reduce_labels") or preprocessor.get("reduce_labels") else 0
    raw_ids = {i + shift: i for i in range(len(classes))} | {IGNORE: IGNORE} | ({0: IGNORE} if shift else {})
    return LabelTable("imported", classes, voc_colours(range(1, len(classes) + 1)), raw_ids)


def _preprocessor(folder: epath.Path) -> Mapping[str, Any]:
    """`preprocessor_config.json` where there is one; it must normalise as our backbones do."""
    path = folder / PREPROCESSOR
    if not path.is_file():
        return {}
    given = storage.read_json(path)
    for field, ours in zip(("image_mean", "image_std"), IMAGENET, strict=True):
        have = given.get(field, [value / 255 for value in ours])
        if np.shape(have) != (3,) or not np.allclose(have, np.asarray(ours) / 255, atol=1e-3):
            raise UserError(f"{path}: {field}={have}: the backbones here want {np.round(ours, 3) / 255}")
    return given


def refuse_a_run(workdir: epath.Path, overwrite: bool) -> None:
    """Sees that the workdir is free, or holds nothing but an earlier import that may go.

    Raises:
        UserError: it holds a run or files of others, or an import without `overwrite`.
    """
    if not (workdir / "checkpoints").exists() and not (workdir / "config.json").exists():
        return
    if not overwrite:
        raise UserError(
            f"--output={workdir}: holds a run; choose another, or pass --overwrite over an import"
        )
    for path in (workdir / "checkpoints").iterdir() if (workdir / "checkpoints").exists() else ():
        if path.name != "0":
            raise UserError(f"--output={workdir}: holds {path}, which is not an import's; choose another")
    saved = checkpoints.Checkpoints(workdir, read_only=True)
    trained = bool(saved.latest_step()) or saved.best_mean_iou() is not None
    saved.close()
    if trained:
        raise UserError(f"--output={workdir}: holds a run that was trained, not an import; choose another")


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_enum("backbone", None, sorted(BACKBONES), "Which backbone; a whole model where left out.")
    flags.DEFINE_string("source", None, "Weights: a path, or a name (docs/weights.md).", required=True)
    flags.DEFINE_string("output", None, "Folder of the file written, or the new workdir.", required=True)
    flags.DEFINE_string("naming", "", "Names in the file written (with --backbone); empty: the first.")
    flags.DEFINE_bool("overwrite", False, "Replace what an earlier import wrote.")


def main(_: Sequence[str]) -> int:
    """Imports what the flags say and prints the report; returns the exit code."""
    values = flags.FLAGS
    if values.backbone is None:
        if values.naming:
            raise UserError(f"--naming={values.naming}: only with --backbone; a run has its own names")
        report = import_model(values.source, values.output, overwrite=values.overwrite)
        print(report.details())
        print(f"wrote the run {values.output}; predict with --workdir {values.output} --mode predict")
        return 0
    path, report, lost = import_backbone(
        values.backbone, values.source, values.output, naming=values.naming, overwrite=values.overwrite
    )
    print(report.details())
    for leaf in lost:
        print(f"not written     {leaf}: the naming has no name for it")
    print(f"wrote {path}; use it with --config.model.backbone.weights={path}")
    return 0


if __name__ == "__main__":
    define_flags()
    shell.run(main)
