"""Records of finished runs: small JSON files, `DIR/NAME_seedN.json`, that are kept with the code.

A record is a dictionary of
- `name`, `seed`, `steps`: a short name, `train.seed`, and the step that was evaluated last;
- `config`: the fields that are not the defaults, by dotted name; folders of this machine are left out;
- `settings`, `evaluation`: `evaluator.settings` of the last evaluation, and `metrics.json` itself;
- `curve`: mIoU by step, of all evaluations of the training;
- `training`: `seconds` (None where unknown), and what they are `from`;
- `date`: UTC, of the last evaluation;
- `command`: what trained it, where that was given;
- `recording`: `commit`, `devices`, `cores`, `cpu`, `memory_gib`, `jax`, `hfgd_jax`. A run
  directory does not hold these: they are those of the machine and the checkout that wrote the record.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
from etils import epath
from flax.traverse_util import flatten_dict

from hfgd_jax import config as configuration
from hfgd_jax.errors import UserError
from hfgd_jax.evaluation import evaluator
from hfgd_jax.runs import saved_config
from hfgd_jax.runs.workdir import RESUMABLE, RESUMABLE_GROUPS
from hfgd_jax.runtime import storage
from hfgd_jax.weights.sources import is_path

FIELDS = ("name", "seed", "steps", "config", "settings", "evaluation", "curve", "training", "date")
_PACKAGE = Path(__file__).resolve().parents[1]
_SEED = re.compile(r"[_-]s(eed)?\d+$")  # the end of a run directory's name, with its seed
_ABSOLUTE = re.compile(r"""(^|[\s=:,'"(])(~?/\w|[A-Za-z]:\\)""")
_RATES = "rates in metrics.jsonl: without compiling, evaluations and saves"

Record = dict[str, Any]


def of_run(workdir: epath.PathLike, name: str = "") -> Record:
    """The record of the run in a run directory: the fields of `FIELDS`.

    Args:
        workdir: of a run that has been evaluated.
        name: of the record; empty: the run directory's, without a seed at its end.

    Raises:
        UserError: it holds no run, or no evaluation.
    """
    folder = storage.resolve(workdir, "--workdirs")
    path = folder / "metrics.json"
    try:
        evaluation = json.loads(path.read_text())
        evaluation.pop("confusion_matrix", None)  # records are small
        date = datetime.datetime.fromtimestamp(path.stat().mtime, datetime.UTC).date().isoformat()
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(
            f"{workdir}: holds no evaluation ({path}: {error}); a training ends with one, and "
            f"python -m hfgd_jax.main --workdir {workdir} --mode eval makes one"
        ) from error
    config = saved_config.get_config(os.fspath(workdir))
    lines = storage.records(folder / "metrics.jsonl")
    return {
        "name": name or _SEED.sub("", folder.name),
        "seed": config.train.seed,
        "steps": evaluation["step"],
        "config": changed_fields(json.loads(configuration.to_json(config))),
        "settings": _settings(evaluation, storage.records(folder / "evaluations.jsonl"))
        or evaluator.settings(config),
        "evaluation": evaluation,
        "curve": {str(line["step"]): line["mIoU"] for line in lines if "mIoU" in line},
        "training": {"seconds": training_seconds(lines, config.train.batch_size), "from": _RATES},
        "date": date,
    }


def changed_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config (as its JSON has it) that are not the defaults, by dotted name.

    `data.data_dir` is left out, and a path to weights is cut to its last part: they depend on the machine.
    """
    defaults = flatten_dict(json.loads(configuration.to_json(configuration.default())), sep=".")
    fields = flatten_dict(config, sep=".")
    fields.pop("data.data_dir")
    weights = fields["model.backbone.weights"] or ""
    fields["model.backbone.weights"] = epath.Path(weights).name if is_path(weights) else weights
    return {key: value for key, value in fields.items() if value != defaults[key]}


def training_seconds(lines: Iterable[Mapping[str, Any]], batch_size: int) -> float | None:
    """Seconds that the steps took, by the `images_per_second` of `metrics.jsonl`; None where it has none."""
    seconds, last = 0.0, 0
    for line in lines:
        if rate := line.get("images_per_second"):
            seconds += (line["step"] - last) * batch_size / rate
            last = line["step"]
    return round(seconds, 1) if last else None


def but_for_the_seed(record: Mapping[str, Any]) -> dict[str, Any]:
    """What runs of one group have in common: all that decides their scores, except for the seed.

    Left out are fields that never change the weights (`workdir.RESUMABLE`) and whether details were counted.
    """
    fields = {
        key: value
        for key, value in record["config"].items()
        if key != "train.seed" and key not in RESUMABLE and not key.startswith(RESUMABLE_GROUPS)
    }
    settings = {f"evaluated: {key}": value for key, value in record["settings"].items() if key != "details"}
    return fields | settings | {"evaluated: step": record["steps"]}


def _settings(evaluation: Mapping[str, Any], evaluations: list[dict[str, Any]]) -> dict[str, Any]:
    """The settings of the evaluation that `metrics.json` is of, where `--mode eval` made it; else empty."""
    for line in reversed(evaluations):
        if all(line.get(key) == value for key, value in evaluation.items()):
            return {key: value for key, value in line.items() if key not in evaluation}
    return {}


def write(record: Record, folder: epath.PathLike, *, overwrite: bool) -> epath.Path:
    """Writes `FOLDER/NAME_seedN.json`, making the folder; returns its path.

    Raises:
        UserError: the file is there, or the record holds an absolute path of this machine.
    """
    for key, value in flatten_dict(record, sep=".").items():
        if isinstance(value, str) and _ABSOLUTE.search(value):
            raise UserError(
                f"record of {record['name']}: {key}={value!r} holds an absolute path; leave it out"
            )
    path = storage.resolve(folder, "--record") / storage.file_name(
        f"{record['name']}_seed{record['seed']}.json"
    )
    if path.exists() and not overwrite:
        raise UserError(f"{path}: exists; pass --overwrite, or choose another --name or --record")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_atomically(path, json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"--record={folder}: cannot be written to ({error})") from error
    return path


def read(folder: epath.PathLike) -> list[Record]:
    """The records in a folder, in the order of their files' names.

    Raises:
        UserError: there is none, or a JSON file in it is no record.
    """
    found = []
    for path in sorted(storage.resolve(folder, "--records").glob("*.json")):
        try:
            record = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error}); write it again with --record") from error
        missing = [key for key in FIELDS if not isinstance(record, dict) or key not in record]
        if missing:
            raise UserError(f"{path}: is no record of a run (lacks {', '.join(missing)})")
        found.append(record)
    if not found:
        raise UserError(f"{folder}: holds no records; --workdirs=A,B --record={folder} writes them")
    return found


def recording(checkout: Path | None = None) -> dict[str, Any]:
    """The machine, the versions and the commit of now.

    Args:
        checkout: the one that trained; None: that of this package.
    """
    package = _PACKAGE if checkout is None else checkout / _PACKAGE.name
    return {
        "commit": commit(package),
        "devices": _devices(),
        "cores": os.cpu_count(),
        "cpu": _cpu(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        **{name: importlib.metadata.version(name) for name in ("jax", "hfgd_jax")},
    }


def commit(package: Path) -> str | None:
    """The commit that a package's folder is at, `-dirty` where its files differ; None where git has none.

    A folder that lies in a repository without being part of it (an installed package) has none.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _devices() -> str | None:
    """Number and kind of JAX's devices; None where there are none to be had (another process holds them)."""
    try:
        devices = jax.devices()
    except RuntimeError:
        return None
    return f"{len(devices)} x {devices[0].device_kind}"


def _cpu() -> str:
    """The processor's name as Linux has it, else its kind."""
    path = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", path.read_text() if path.exists() else "", re.MULTILINE)
    return names[0] if names else platform.processor() or platform.machine()
