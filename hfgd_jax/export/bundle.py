"""The files of an exported bundle: a folder that is there whole or not at all, with a manifest of hashes.

```
BUNDLE/manifest.json            what is in it: hashes, versions, input contract, parity
       README.md                the model card
       loader.py                runs it with jax and numpy alone
       config.json labels.json  the run's config; its classes, colours and raw ids
       DTYPE/program.jax        what jax.export serialised: StableHLO for every platform
       DTYPE/weights.safetensors
       orbax/                   on request: the parameters that inference reads, float32
```
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from jax import export
from safetensors.numpy import save

from hfgd_jax.errors import UserError

FORMAT = "hfgd_jax bundle 1"
MANIFEST = "manifest.json"


def target(output: str, *, overwrite: bool) -> Path:
    """Where a bundle is to be, once it is sure that nothing else is lost by it.

    Raises:
        UserError: something is there, and it is not a bundle (and nothing more), or `overwrite` is off.
    """
    if "://" in output:
        raise UserError(f"--output={output}: export writes to a local folder; copy the bundle from there")
    path = Path(output).expanduser().absolute()
    if not (path.exists() or path.is_symlink()):
        return path
    if not overwrite:
        raise UserError(f"--output={output}: exists; choose another, or pass --overwrite to replace a bundle")
    foreign = _foreign(path)
    if foreign:
        raise UserError(f"--output={output}: {foreign}, and is not replaced; choose another --output")
    return path


def _foreign(path: Path) -> str:
    """What speaks against removing the folder; empty where all in it is a bundle's."""
    if path.is_symlink() or not path.is_dir():
        return "is no folder"
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        ours = {MANIFEST, *manifest["files"]} if manifest["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError):
        ours = None
    if ours is None:
        return "is no bundle of this program"
    # Python writes the cache where the bundle's own loader was imported.
    surplus = [name for name in list_files(path) if name not in ours and not name.startswith("__pycache__/")]
    return f"holds {surplus[0]}, which is not the bundle's" if surplus else ""


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A new folder beside `path` that takes its place when the block ends well, and is removed if not.

    Raises:
        UserError: it cannot be written.
    """
    here, before = (path.with_name(f".{path.name}.{what}-{os.getpid()}") for what in ("export", "before"))
    try:
        here.mkdir(parents=True)
        yield here
        if path.exists():
            path.rename(before)
        here.rename(path)
        shutil.rmtree(before, ignore_errors=True)
    except OSError as error:
        if before.exists() and not path.exists():
            before.rename(path)
        raise UserError(f"--output={path}: cannot be written ({error}); nothing was exported") from error
    finally:
        shutil.rmtree(here, ignore_errors=True)


def write_variant(
    folder: Path, dtype: str, weights: Mapping[str, np.ndarray], program: export.Exported
) -> dict[str, str]:
    """Writes program and weights of a dtype; gives their names within the folder."""
    (folder / dtype).mkdir()
    names = {"program": f"{dtype}/program.jax", "weights": f"{dtype}/weights.safetensors"}
    (folder / names["program"]).write_bytes(program.serialize())
    (folder / names["weights"]).write_bytes(save(dict(weights)))
    return names


def write_tree(folder: Path, tree: Any) -> None:
    """Writes a pytree of arrays with orbax; `ocp.StandardCheckpointer().restore(FOLDER)` reads it back.

    Raises:
        OSError: it cannot be written.
    """
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder, tree)
    except Exception as error:  # tensorstore and orbax raise many kinds
        raise OSError(f"{folder.name}: {' '.join(str(error).split())[:300]}") from error


def read_tree(folder: Path) -> Any:
    """What `write_tree` wrote, as numpy arrays."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder)


def write_manifest(folder: Path, described: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the manifest of all that is in the folder, and returns it."""
    files = {
        name: {
            "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
            "bytes": (folder / name).stat().st_size,
        }
        for name in list_files(folder)
        if name != MANIFEST
    }
    manifest = {"format": FORMAT, **described, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def list_files(folder: Path) -> list[str]:
    """Files below a folder, by their names within it, sorted."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())
