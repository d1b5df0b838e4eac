"""Bundles on the Hugging Face hub: pushed there, and fetched by name."""

import json
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from hfgd_jax.errors import UserError
from hfgd_jax.export import bundle, loader
from hfgd_jax.weights import sources

DTYPE = "float32"  # of the variant that is fetched
_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def fetch(name: str) -> Path:
    """The folder of a bundle's float32 variant, in the cache of huggingface_hub (`HF_HOME`).

    Args:
        name: `hf:OWNER/NAME`, or `hf:OWNER/NAME@REVISION`.

    Raises:
        UserError: no such repository, no bundle in it, a missing package, or no network and no copy.
    """
    sources.check(name)
    repository, revision = sources.repository(name)
    hub = sources.hub_library(name)

    def get(file: str, commit: str | None) -> Path:
        try:
            return Path(hub.hf_hub_download(repository, file, revision=commit))
        except hub.errors.LocalEntryNotFoundError as error:
            raise UserError(f"{name}: {sources.hub_reason(repository, commit, error)}") from None
        except hub.errors.EntryNotFoundError:
            raise UserError(f"{name}: holds no {file}; want a bundle, as hfgd push writes it") from None
        except Exception as error:  # the library's own types, its HTTP client's, and OSError
            raise UserError(f"{name}: {sources.hub_reason(repository, commit, error)}") from None

    path = get(bundle.MANIFEST, revision)
    try:
        manifest = json.loads(path.read_text())
        wanted = ["labels.json", *manifest["variants"][DTYPE].values()]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{name}: its {bundle.MANIFEST} is of no bundle with a {DTYPE} variant") from None
    for file in wanted:
        if (
            not isinstance(file, str)
            or PurePosixPath(file).is_absolute()
            or ".." in PurePosixPath(file).parts
        ):
            raise UserError(f"{name}: its {bundle.MANIFEST} names a file outside of it: {file!r}")
        get(str(file), path.parent.name)  # the cache has a folder for each commit
    return path.parent


def push(folder: str, repository: str, *, private: bool = False, log: Callable[[str], Any] = print) -> None:
    """Writes a bundle into a repository of the hub, which is made where there is none.

    Args:
        folder: an exported bundle; every file is checked against the manifest, and nothing else is sent.
        repository: OWNER/NAME; what it holds under other names stays.
        private: of a repository that is made.
        log: called with what was done.

    Raises:
        UserError: no bundle, one that was changed, a name that is none, or a hub that refuses.
    """
    if not _NAME.fullmatch(repository):
        raise UserError(f"--repository={repository}: want OWNER/NAME")
    try:
        manifest = loader.verify(folder)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--bundle={folder}: is no whole bundle: {' '.join(str(error).split())}") from None
    hub = sources.hub_library(f"--repository={repository}")
    files = [bundle.MANIFEST, *manifest["files"]]
    try:
        api = hub.HfApi()
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=files,
            commit_message=f"Step {manifest['step']} of a run of hfgd_jax",
        )
    except Exception as error:  # the library's own types, its HTTP client's, and OSError
        raise UserError(f"--repository={repository}: {sources.hub_reason(repository, None, error)}") from None
    size = sum(file["bytes"] for file in manifest["files"].values())
    log(f"{len(files)} files, {size / 1e6:.1f} MB, in {url}; hfgd_jax.load('hf:{repository}') fetches it")
