"""The run directory: the config of its run, whether another may use it, and the errors of its files."""

import contextlib
import json
from collections.abc import Iterator, Sequence

from etils import epath
from ml_collections import ConfigDict

from hfgd_jax import config as configuration
from hfgd_jax.errors import UserError, warn
from hfgd_jax.runs.checkpoints import Checkpoints
from hfgd_jax.runtime import storage

# Fields that may change when a run goes on: they alter speed, place or reporting, never the weights.
RESUMABLE = (
    *("data.data_dir", "data.threads", "data.workers", "data.prefetch", "data.eval_split"),
    *("train.log_every", "train.stall_timeout", "model.backbone.remat"),
)
RESUMABLE_GROUPS = ("eval.", "checkpoint.", "mesh.")


def short_names(workdirs: Sequence[epath.PathLike]) -> list[str]:
    """What run directories are called: the last parts of their paths, as few as tell different ones apart."""
    parts = [storage.absolute(storage.resolve(workdir, "--workdirs")).parts for workdir in workdirs]
    count = 1
    while len({part[-count:] for part in parts}) < len(set(parts)):
        count += 1
    return ["/".join(part[-count:]) for part in parts]


def read_config(workdir: epath.Path) -> ConfigDict | None:
    """The config of the run in a run directory, None where there is none. It touches no device.

    Where `config.json` is missing or garbled, the config in the latest readable checkpoint takes its place,
    with a warning.

    Raises:
        UserError: it cannot be read and no checkpoint has it, or it is of another version.
    """
    path, problem = workdir / "config.json", "no config.json"
    if path.exists():
        try:
            json.loads(path.read_text())
        except ValueError as error:  # not JSON, or not even text
            problem = f"a config.json that cannot be read ({error})"
        else:
            return configuration.from_json(path.read_text())
    saved = Checkpoints(workdir, read_only=True)
    text = saved.config()
    if text is not None:
        warn(f"--workdir={workdir}: has {problem}; taking the config that its latest checkpoint holds")
        return configuration.from_json(text)
    if saved.latest_step() is not None:
        raise UserError(f"--workdir={workdir}: has checkpoints but {problem}; use another --workdir")
    if path.exists():
        raise UserError(f"--workdir={workdir}: has {problem}; remove it, or use another --workdir")
    return None


def check_workdir(workdir: epath.Path, config: ConfigDict) -> None:
    """Makes sure that the run directory is free or this run's; writes nothing.

    Raises:
        UserError: it holds another run (the differing fields are named), or checkpoints of no known run.
    """
    there = read_config(workdir)
    if there is None:
        return
    other = configuration.differences(there, config)
    other = [d for d in other if not d.startswith(RESUMABLE_GROUPS) and d.split(":")[0] not in RESUMABLE]
    if other:
        raise UserError(
            f"--workdir={workdir}: holds another run; these fields differ (there -> here): "
            f"{'; '.join(other)}. Use another --workdir, or that run's config"
        )


@contextlib.contextmanager
def failing_in_one_line(workdir: epath.Path) -> Iterator[None]:
    """Turns an error of the file system in the run directory into a UserError.

    Raises:
        UserError: the run directory was removed, or cannot be written to.
    """
    try:
        yield
    except OSError as error:
        name = str(error.filename or workdir)  # a full disk names no file
        if not name.startswith((str(workdir), str(storage.absolute(workdir.expanduser())))):
            raise
        if not workdir.exists():
            raise UserError(
                f"--workdir={workdir}: was removed while the run wrote to it ({error}); put it back, or "
                "start again in another"
            ) from error
        kept = Checkpoints(workdir, read_only=True).latest_step()
        raise UserError(
            f"--workdir={workdir}: cannot be written to ({error}); the last checkpoint is "
            f"{'none' if kept is None else f'of step {kept}'}. The same command goes on from there"
        ) from error
