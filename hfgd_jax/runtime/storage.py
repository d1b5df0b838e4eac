"""Files of runs wherever they are: on this machine, or in a bucket (`gs://`), through etils' epath.

A bucket holds objects, which differ from files: one appears whole or not at all, nothing can be appended to
it (epath's mode "a" replaces it), renaming copies, and folders are but a part of the names.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

from etils import epath

from hfgd_jax.errors import UserError, lacking

# What each kind of bucket needs, and what brings it.
CLIENTS = {"gs": ("gcsfs", "hfgd_jax[gcs]"), "s3": ("s3fs", "s3fs"), "az": ("adlfs", "adlfs")}
ARRAYS = "gs"  # what checkpoints (tensorstore) and data sets (array_record) can be read from, too
LONGEST = 120  # characters of a file's name that is made of a record's id
# Names that are devices on Windows, whatever their suffix.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_PAUSE = 30.0  # seconds from one writing of a whole object to the next


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is in a bucket rather than on this machine."""
    return "://" in os.fspath(path)


def resolve(value: epath.PathLike, name: str, *, arrays: bool = False) -> epath.Path:
    """The path that a flag or a field means, `~` expanded; one in a bucket is looked at once.

    Args:
        value: as the user wrote it.
        name: of the flag or field, for messages.
        arrays: checkpoints or a data set are to lie there.

    Raises:
        UserError: an unknown scheme, a missing package, or a path that cannot be reached.
    """
    text = os.fspath(value)
    if not is_remote(text):
        return epath.Path(text).expanduser()
    scheme = text.partition("://")[0]
    if scheme not in CLIENTS or (arrays and scheme != ARRAYS):
        known = [ARRAYS] if arrays else list(CLIENTS)
        raise UserError(
            f"{name}={text}: cannot be used here; want a folder of this machine (a mounted bucket is "
            f"one), or {', '.join(f'{scheme}://' for scheme in known)}"
        )
    path = epath.Path(text)
    try:
        path.exists()
    except ImportError:
        raise lacking(f"{name}={text}", *CLIENTS[scheme]) from None
    except Exception as error:  # each client has its own kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{name}={text}: cannot be reached ({reason}); check the name, the network and the credentials "
            "(gcloud auth application-default login)"
        ) from None
    return path


def absolute(path: epath.Path) -> epath.Path:
    """The path from the root; that of a bucket is one (epath's own `resolve` takes it for a local name)."""
    return path if is_remote(path) else path.resolve()


def real(path: epath.PathLike) -> str:
    """What two names of the same file have in common: links followed."""
    return os.fspath(path) if is_remote(path) else os.path.realpath(path)


def file_name(text: str) -> str:
    """A name for a file, made of a record's id: no folders, no hidden file, no device, not too long."""
    name = re.sub(r"[^\w.-]", "_", text) or "_"
    if name.startswith(".") or _DEVICES.fullmatch(name):
        name = f"_{name}"
    if len(name.encode()) > LONGEST:  # the end of an id is more specific than its folders
        digest = blake2b(text.encode(errors="replace"), digest_size=4).hexdigest()
        name = f"{digest}_{name.encode()[-LONGEST + 9 :].decode(errors='ignore')}"
    return name


@contextlib.contextmanager
def writing(path: epath.PathLike) -> Iterator[Path]:
    """A new file of this machine to write; it becomes `path` at the end, whole, and never after an error.

    A link at `path` is replaced, not followed. The folder must exist.
    """
    path = epath.Path(path)
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / "part"
            yield part
            with part.open("rb") as source, path.open("wb") as target:
                shutil.copyfileobj(source, target, 2**20)
        return
    # A random name: no other file is overwritten.
    part = Path(path).with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_atomically(path: epath.PathLike, data: str | bytes) -> None:
    """Writes a file that no reader ever sees in part."""
    with writing(path) as part:
        part.write_bytes(data.encode() if isinstance(data, str) else data)


def read_json(path: epath.Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: there is none.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object")
    return value


@contextlib.contextmanager
def local(path: epath.Path) -> Iterator[Path]:
    """The file on this machine: itself, or a copy that is gone afterwards."""
    if not is_remote(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        with path.open("rb") as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target, 2**20)
        yield copy


class Lines:
    """A file of JSON records, a line each, that only grows.

    On this machine a record is in the file when `add` returns. In a bucket the whole object is written again,
    at most once in half a minute, and by `flush`.
    """

    def __init__(self, path: epath.Path, keep: Callable[[dict[str, Any]], bool] = lambda record: True):
        """Opens the file and drops the records that `keep` refuses, and a last line cut short by a kill.

        Lines that are no records are not ours, and stay.
        """
        self.path = path
        text = path.read_text() if path.exists() else ""
        lines = text.splitlines()
        if lines and not text.endswith("\n") and _record(lines[-1]) is None:
            lines.pop()
        self._lines = [line for line in lines if (record := _record(line)) is None or keep(record)]
        self._written = time.monotonic()
        self._dirty = self._text() != text
        self.flush()

    def add(self, record: dict[str, Any]) -> None:
        """Appends a record."""
        self._lines.append(json.dumps(record))
        if not is_remote(self.path):
            with self.path.open("a") as file:
                file.write(self._lines[-1] + "\n")
            return
        self._dirty = True
        if time.monotonic() - self._written >= _PAUSE:
            self.flush()

    def flush(self) -> None:
        """Returns when all records are in the file."""
        if self._dirty:
            write_atomically(self.path, self._text())
            self._written, self._dirty = time.monotonic(), False

    def _text(self) -> str:
        return "".join(line + "\n" for line in self._lines)


def records(path: epath.Path) -> list[dict[str, Any]]:
    """The records of a file that `Lines` writes, the oldest first; none where there is no file."""
    lines = path.read_text().splitlines() if path.exists() else ()
    return [record for record in map(_record, lines) if record is not None]


def _record(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and isinstance(value.get("step"), int) else None
