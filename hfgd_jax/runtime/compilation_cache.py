"""What was compiled is kept in the user's cache folder, so that the next command need not compile it again.

JAX's own variables come first: `JAX_COMPILATION_CACHE_DIR` names another folder (`gs://` too),
`JAX_COMPILATION_CACHE_MAX_SIZE` another bound in bytes, `JAX_ENABLE_COMPILATION_CACHE=false` keeps nothing.
"""

import hashlib
import os
import platform
import sys
from pathlib import Path

MAX_SIZE = 2 * 1024**3  # bytes; the programs that were not used for longest go first
_FOLDER, _SIZE = "jax_compilation_cache_dir", "jax_compilation_cache_max_size"


def folder() -> Path:
    """Where this machine's programs are kept.

    Each kind of processor has a folder of its own: a program that was compiled for one may end another with
    an illegal instruction, and home folders are shared between machines.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:  # not Linux
        features = platform.processor()
    kind = hashlib.sha256(features.encode()).hexdigest()[:12]
    return root / "hfgd_jax" / "compiled" / f"{platform.machine()}-{kind}"


def use() -> None:
    """Keeps programs in `folder()`, unless a variable of JAX says otherwise or the folder cannot be written.

    Also for the processes that this one starts.
    """
    if _FOLDER.upper() in os.environ:
        return
    try:
        folder().mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, read-only, or full
        return
    if not os.access(folder(), os.W_OK):
        return
    values = {_FOLDER: str(folder()), _SIZE: int(os.environ.get(_SIZE.upper(), MAX_SIZE))}
    os.environ.update({name.upper(): str(value) for name, value in values.items()})
    if jax := sys.modules.get("jax"):  # it reads its variables when it is imported
        for name, value in values.items():
            jax.config.update(name, value)


def leave() -> None:
    """Keeps nothing in `folder()` in this process, which is one of several.

    Where one process finds a program and others must compile it, XLA's autotuning, which GPUs of several
    processes share, waits for a process that has nothing to tune. A folder that all of them share is
    JAX_COMPILATION_CACHE_DIR's.
    """
    if os.environ.get(_FOLDER.upper()) == str(folder()):
        import jax

        jax.config.update("jax_enable_compilation_cache", False)
