"""A run's weights as other projects read them: its backbone, or a whole UPerNet for transformers.

python -m hfgd_jax.tools.export_weights --workdir RUN --checkpoint best --output FILE.safetensors
python -m hfgd_jax.tools.export_weights --workdir RUN --naming transformers --output FOLDER
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from hfgd_jax.data.labels import LabelTable
from hfgd_jax.errors import UserError
from hfgd_jax.runs import saved_config, system
from hfgd_jax.runtime import shell, storage
from hfgd_jax.weights import files, foreign, pretrained
from hfgd_jax.weights.names import upernet


def export_model(
    variables: Mapping[str, Any], config: ConfigDict, table: LabelTable
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and `config.json` of a UPerNet, as transformers' `from_pretrained` takes them.

    Where the decoder's batch normalisations have another epsilon than transformers' 1e-5, the difference is
    added to their variances: the same function. Counters of batches, which only training reads, are 0.

    Args:
        variables: of the `Segmenter`.
        config: of the run.
        table: its labels.

    Raises:
        UserError: the run is no UPerNet as transformers has it.
    """
    described = foreign.transformers_config(config, table.classes)
    tensors = pretrained.export(variables, upernet.naming(config.model.backbone.name))
    for name in [name for name in tensors if name.endswith(".running_var")]:
        if name.startswith("decode_head."):
            tensors[name] = tensors[name] + np.float32(config.model.batch_norm_epsilon - foreign.EPSILON)
        tensors[name.removesuffix("running_var") + "num_batches_tracked"] = np.zeros((), np.int64)
    return tensors, described


def export_run(workdir: str, checkpoint: str, naming: str, output: str, *, overwrite: bool) -> list[str]:
    """Writes a run's backbone to a `.safetensors` file, or its whole model into a folder.

    Args:
        workdir: of the run.
        checkpoint: `latest`, `best` or a step.
        naming: the project's; empty for the backbone's first.
        output: the kind of export is told by its suffix.
        overwrite: replace files that are there.

    Returns:
        The lines of a report.

    Raises:
        UserError: no such run, checkpoint or naming, a model that transformers lacks, or files in the way.
    """
    path = storage.resolve(output, "--output")
    config = saved_config.get_config(workdir)
    name = config.model.backbone.name
    whole = path.suffix != ".safetensors"
    if whole and naming != "transformers":
        raise UserError(
            f"--output={output}: want FILE.safetensors for the backbone in {naming or 'another'!r} naming; "
            "a folder takes a whole UPerNet with --naming=transformers"
        )
    if whole:
        foreign.transformers_config(config, ())  # refuses before anything is read
    wanted = pretrained.find_naming(name, naming)
    _, on_mesh, step, table = system.load(config, workdir, checkpoint)
    variables = jax.device_get(on_mesh)
    if whole:
        return _write_model(path, *export_model(variables, config, table), step, overwrite)
    tensors = pretrained.export(variables, wanted, root="backbone")
    files.write(path, tensors, overwrite=overwrite)
    lost = pretrained.unnamed(variables, wanted, root="backbone")
    return [
        *(f"not written     {leaf}: {wanted.name} has no name for it" for leaf in lost),
        f"wrote {path}: {len(tensors)} tensors of {name} at step {step}, "
        f"in {pretrained.owner(wanted.name)} naming",
    ]


def _write_model(
    folder: epath.Path, tensors: dict[str, np.ndarray], described: dict[str, Any], step: int, overwrite: bool
) -> list[str]:
    if (folder / "config.json").exists() and not overwrite:
        raise UserError(f"{folder / 'config.json'}: exists; pass --overwrite, or choose another --output")
    files.write(folder / "model.safetensors", tensors, overwrite=overwrite)
    storage.write_atomically(folder / "config.json", json.dumps(described, indent=2) + "\n")
    return [f"wrote {folder}: {len(tensors)} tensors of a UPerNet at step {step}, and config.json"]


def define_flags() -> None:
    """The command's flags."""
    flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    flags.DEFINE_string("checkpoint", "latest", "latest, best or a step.")
    flags.DEFINE_string("naming", "", "timm, torchvision or transformers; empty: the backbone's first.")
    flags.DEFINE_string("output", None, "FILE.safetensors, or a folder for a whole UPerNet.", required=True)
    flags.DEFINE_bool("overwrite", False, "Replace files that are there.")


def main(_: Sequence[str]) -> int:
    """Exports what the flags say; returns the exit code."""
    v = flags.FLAGS
    for line in export_run(v.workdir, v.checkpoint, v.naming, v.output, overwrite=v.overwrite):
        print(line)
    return 0


if __name__ == "__main__":
    define_flags()
    shell.run(main)
