"""Writes an error report of a run: a folder that a browser opens without a network.

    python -m hfgd_jax.tools.report --workdir runs/camvid --output report
    python -m hfgd_jax.tools.report --workdir runs/camvid --compare runs/camvid-sfpn --output report
    python -m hfgd_jax.tools.report --workdir runs/camvid --split train --output labels

Scores by class, confusions, the worst and the best images with a viewer, and the labels that the model
doubts; open report/index.html. docs/report.md says how to read it.
"""

import contextlib
import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from hfgd_jax import config as configuration
from hfgd_jax.data.prepared import Split
from hfgd_jax.errors import UserError
from hfgd_jax.evaluation import evaluator, records
from hfgd_jax.report import predictions
from hfgd_jax.report.collect import Collector, Options
from hfgd_jax.report.write import Run, curves_of, strangers, write
from hfgd_jax.runs import saved_config
from hfgd_jax.runs.system import Trained, open_data
from hfgd_jax.runs.workdir import short_names
from hfgd_jax.runtime import shell, storage
from hfgd_jax.runtime.progress import Doing

_MARK = Path("data") / "scores.js"  # a folder with it is a report


def run_config(workdir: str, split: str) -> ConfigDict:
    """The config of a run, with another split to look at where one is given.

    Raises:
        UserError: no run there, or a config that is not valid.
    """
    config = saved_config.get_config(workdir)
    if split:
        config.data.eval_split = split
    configuration.validate(config)
    return config


def labelled_split(config: ConfigDict) -> Split:
    """The split to look at.

    Raises:
        UserError: no such split, one without labels, or an empty one.
    """
    split = open_data(config, config.data.eval_split)
    if not split.labelled or not len(split):
        what = "has no labels" if len(split) else "is empty"
        raise UserError(f"--split={split.split}: this split of {split.dataset!r} {what}: nothing to report")
    return split


def described(run: Trained, workdir: str, name: str) -> Run:
    """What the page says of a run."""
    lines = storage.records(storage.resolve(workdir, "--workdir") / "metrics.jsonl")
    fields = records.changed_fields(json.loads(configuration.to_json(run.system.config)))
    settings = evaluator.settings(run.system.config) | {"details": True}
    return Run(name, run.step, settings, fields, curves_of(lines))


@contextlib.contextmanager
def folder_for(output: str, overwrite: bool) -> Iterator[Path]:
    """A new folder beside the output, which takes its place at the end and is removed after an error.

    Raises:
        UserError: the output is in a bucket, or is there and is no report that may be replaced.
    """
    if storage.is_remote(output):
        raise UserError(f"--output={output}: want a folder of this machine; copy the report from there")
    target = Path(output).expanduser().absolute()
    if target.exists():
        report = target.is_dir() and ((target / _MARK).exists() or not any(target.iterdir()))
        if not report:
            raise UserError(f"--output={output}: is there already and is no report; take another name")
        if (target / _MARK).exists() and not overwrite:
            raise UserError(f"--output={output}: is there already; take another name, or --overwrite")
        if others := strangers(target):
            raise UserError(f"--output={output}: holds {others[0]!r} beside a report; move it away first")
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with _writing(output):
            part.mkdir(parents=True)
        yield part
        with _writing(output):
            if target.exists():
                shutil.rmtree(target)
            part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def _writing(output: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"--output={output}: cannot be written ({error})") from error


def collect(
    run: Trained, split: Split, folder: Path, options: Options, compared: Callable[[int], np.ndarray] | None
) -> Collector:
    """Predicts every image of the split once and keeps what the report needs."""
    collector = Collector(folder, split.table, options, compare=compared is not None)
    with Doing("predicting", len(split)) as doing:
        for done, seen in enumerate(predictions.seen_by(run, split, compared), start=1):
            collector.add(seen)
            doing(done)
    if not collector.images:
        raise UserError(f"data set {split.dataset!r}, split {split.split!r}: none of the records can be read")
    return collector


def make(
    workdirs: Sequence[str], checkpoint: str, split_name: str, output: str, options: Options, overwrite: bool
) -> int:
    """Writes the report of one run, or of two; returns the number of images.

    Args:
        workdirs: of the run, and of the one that it is compared with.
        checkpoint: `latest`, `best` or a step, of each.
        split_name: of the first run's data; empty: its `data.eval_split`.
        output: the folder.
        options: what is kept.
        overwrite: replace a report that is there.

    Raises:
        UserError: no such run, checkpoint or split, runs of different classes, or an output in the way.
    """
    configs = [run_config(workdir, split_name) for workdir in workdirs]
    split, names, told = labelled_split(configs[0]), short_names(workdirs), []
    with folder_for(output, overwrite) as folder, contextlib.ExitStack() as stack:
        compared = None
        if len(workdirs) > 1:  # first, so that one model at a time is in memory
            other = predictions.load(configs[1], workdirs[1], checkpoint, split)
            told.append(described(other, workdirs[1], names[1]))
            with Doing(f"predicting with {names[1]}", len(split)) as doing:
                compared = stack.enter_context(predictions.stored_masks(other, split, doing))
            del other
        run = predictions.load(configs[0], workdirs[0], checkpoint, split)
        told.insert(0, described(run, workdirs[0], names[0]))
        found = collect(run, split, folder, options, compared)
        versions = records.recording()
        with _writing(output):
            write(folder, found, told, dataset=split.dataset, split=split.split, versions=versions)
    return len(found.images)


def define_flags() -> None:
    """The command's flags."""
    defaults = Options()
    flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    flags.DEFINE_string("compare", "", "Folder of a second run, shown beside the first.")
    flags.DEFINE_string("checkpoint", "best", "latest, best or a step, of each run.")
    flags.DEFINE_string("split", "", "The split to look at; empty: the run's data.eval_split.")
    flags.DEFINE_string("output", None, "Folder of the report.", required=True)
    flags.DEFINE_bool("overwrite", False, "Replace the report if it is there.")
    flags.DEFINE_integer(
        "side", defaults.side, "Pixels of the longer side of images and masks, at most.", 32, 4096
    )
    flags.DEFINE_integer("thumbnail", defaults.thumbnail, "The same of thumbnails.", 16, 512)
    flags.DEFINE_integer("quality", defaults.quality, "Of the WebP files.", 1, 100)
    flags.DEFINE_float(
        "doubt", defaults.doubt, "Probability of its class up to which a label is doubted.", 0.0, 1.0
    )
    flags.DEFINE_integer("regions", defaults.regions, "Doubtful regions kept of an image.", 0, 100)


def main(_: Sequence[str]) -> int:
    """Writes the report and says where it is; returns the exit code."""
    v = flags.FLAGS
    options = Options(v.side, v.thumbnail, v.quality, v.doubt, v.regions)
    workdirs = [v.workdir, v.compare] if v.compare else [v.workdir]
    images = make(workdirs, v.checkpoint, v.split, v.output, options, v.overwrite)
    print(f"{images} images: open {Path(v.output) / 'index.html'}")
    return 0


if __name__ == "__main__":
    define_flags()
    shell.run(main)
