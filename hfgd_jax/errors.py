"""What a user is meant to read: the exceptions that end a command in one line, and warnings."""

import difflib
import importlib.util
import sys
import unicodedata
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The message names the thing, the value and the way out, on one line.

    Commands print it without a traceback and exit with code 2. It takes one string, so that it can be
    pickled between data workers.
    """


def lacking(what: str, packages: str, install: str) -> UserError:
    """The error where an optional package is missing: what needs which, and the command that installs it."""
    quoted = f'"{install}"' if "[" in install else install
    return UserError(f"{what} needs {packages}: pip install {quoted}")


def require(what: str, install: str, *packages: str) -> None:
    """Makes sure of optional packages, before anything takes long.

    Args:
        what: needs them: a command, or a flag with its value.
        install: what pip is to install.
        packages: names as in `import`.

    Raises:
        UserError: one is missing.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise lacking(what, ", ".join(missing), install)


def warn(text: str) -> None:
    """A line on stderr about what needs no answer."""
    print("warning: " + printable(text), file=sys.stderr, flush=True)


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that is most like a misspelt one, for a message; "" where none is."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)), "")


def printable(text: str) -> str:
    """The text on one line, escaped."""
    return escaped(" ".join(text.split()))


def escaped(text: str) -> str:
    """The text with what a terminal would obey in place of showing it (newlines too) as escapes: `\\x1b`."""
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    obeyed = not character.isprintable() and unicodedata.category(character) != "Zs"
    return character.encode("unicode_escape").decode() if obeyed else character
