"""Trains the rows of an ablation on a data set, one after the other, and records each one's scores.

    python benchmarks/ablation.py --config configs/camvid.py --arguments weights=pip:efficientnet_lite0 \\
        --data_dir data --runs runs/camvid --records docs/results/camvid/lite0

`--methods` and `--seeds` choose the runs: `--methods=sfpn,hfgd --seeds=0,1,2`; `--override` changes a field
for all of them (`--override train.steps=1500`). A run whose record is there is skipped and one that was
stopped goes on, so that the same command finishes what it began. Each run is a process of its own. Tables:
`python -m hfgd_jax.tools.scores --records docs/results/camvid/lite0`.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from hfgd_jax.errors import UserError
from hfgd_jax.runtime import shell

METHODS = ["fcn", "sfpn", "sfpn_guidance", "sfpn_aa", "sfpn_hfgm", "u_sfpn_cae", "hfgd", "hfgd_residual"]

flags.DEFINE_string("config", None, "Config file, without arguments.", required=True)
flags.DEFINE_string("arguments", "", "Its arguments but for method, joined by commas.")
flags.DEFINE_string("data_dir", "data", "Where the data set is prepared.")
flags.DEFINE_string("runs", None, "Folder of the runs; each has one of its own in it.", required=True)
flags.DEFINE_string("records", None, "Folder of the records.", required=True)
flags.DEFINE_list("methods", METHODS, "Rows, of config.METHODS.")
flags.DEFINE_list("seeds", ["0"], "Seeds of each row.")
flags.DEFINE_multi_string("override", [], "FIELD=VALUE of the config, for every run.")


def train(method: str, seed: str) -> None:
    """One run and its record.

    Raises:
        UserError: the training failed; what it said stands above.
    """
    values, name = flags.FLAGS, f"{method}_seed{seed}"
    if (Path(values.records) / f"{name}.json").exists():
        print(f"{name}: recorded already")
        return
    arguments = ",".join(filter(None, (f"method={method}", values.arguments)))
    changes = ["eval.details=True", f"train.seed={seed}", *values.override]
    config = [f"--config={values.config}:{arguments}", *(f"--config.{change}" for change in changes)]
    workdir = str(Path(values.runs) / name)
    command = [sys.executable, "-m", "hfgd_jax.main", *config, f"--workdir={workdir}"]
    ended = subprocess.run([*command, f"--config.data.data_dir={values.data_dir}"], check=False)
    if ended.returncode:
        raise UserError(f"{name}: the training ended with code {ended.returncode}")
    shown = ["python", "-m", "hfgd_jax.main", *config]
    # Also a process of its own: this one must never hold the accelerator that the next run needs.
    record = [sys.executable, "-m", "hfgd_jax.tools.scores", f"--workdirs={workdir}"]
    record += [f"--record={values.records}", f"--command={' '.join(shown)}"]
    if subprocess.run(record, check=False).returncode:
        raise UserError(f"{name}: trained, but not recorded")


def main(_: Sequence[str]) -> int:
    """Trains and records; returns the exit code."""
    for seed in flags.FLAGS.seeds:
        for method in flags.FLAGS.methods:
            train(method, seed)
    return 0


if __name__ == "__main__":
    shell.run(main)
