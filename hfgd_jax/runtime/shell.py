"""What every command shares: parsed flags, exit codes, and one line for an error of the user."""

import inspect
import itertools
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags, logging

from hfgd_jax import config as configuration
from hfgd_jax.config import describe
from hfgd_jax.errors import UserError, nearest, printable
from hfgd_jax.runtime import compilation_cache, interrupts

USER_ERROR = 2
_GRACE = 5.0  # seconds in which a command ends in order after an error

# What a wrong flag or config override raises: absl's own errors, and those of ml_collections and of a
# config file that cannot be found or read.
_FLAG_ERRORS = (
    flags.Error,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
    OSError,
    ImportError,
    SyntaxError,
)


def run(
    main: Callable[[Sequence[str]], int | None], on_failure: Callable[[int], None] = lambda code: None
) -> None:
    """Parses the flags, calls `main(argv)` and exits with what it returns (None: 0).

    A `UserError`, an unknown flag or a bad value becomes one line on stderr and exit code 2; Ctrl-C exits
    with 130 and SIGTERM with 143, without a traceback. Anything else is a bug and keeps its traceback.
    `--help` exits with 0. After an error the process ends within seconds, whatever its threads do. What it
    compiles is kept (`compilation_cache`).

    Args:
        main: the command.
        on_failure: called with the exit code of a failure; it may end the process (`processes.end_now`).
    """

    def guarded(argv: Sequence[str]) -> int | None:
        signals: list[int] = []
        if not flags.FLAGS["verbosity"].present:  # the libraries' own log lines; --verbosity=0 shows them
            logging.set_verbosity(logging.FATAL)
        try:
            if len(argv) > 1:
                raise UserError(f"unexpected argument {argv[1]!r}; options are written --name=value")
            with interrupts.ending(signals):
                compilation_cache.use()
                return main(argv)
        except UserError as error:
            code = fail(error)
        except KeyboardInterrupt:
            code = 128 + (signals or [signal.SIGINT])[0]
        except Exception:
            on_failure(1)
            _end_soon(1)
            raise
        on_failure(code)
        _end_soon(code)
        return code

    sys.unraisablehook = _report_unraisable
    app.run(guarded, flags_parser=_parse)


def _end_soon(code: int) -> None:
    """Ends the process after `_GRACE` seconds: an orderly exit would wait for threads that may hang."""
    timer = threading.Timer(_GRACE, os._exit, [code])
    timer.daemon = True
    timer.start()


def fail(error: BaseException) -> int:
    """Prints the error's message as one line on stderr; returns the exit code of a user's mistake."""
    message = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if "Traceback (most recent call last)" in message:  # ml_collections' report of what a config file raised
        message = message.strip().splitlines()[-1].removeprefix(f"{UserError.__module__}.UserError: ")
    print("error: " + printable(message), file=sys.stderr, flush=True)
    return USER_ERROR


def _report_unraisable(error: "sys.UnraisableHookArgs") -> None:
    # After a failed save tensorstore still reports every array's write to an event loop that has ended, and
    # prints a traceback for each; the save itself has raised long before.
    if not (error.exc_type is RuntimeError and str(error.exc_value) == "Event loop is closed"):
        sys.__unraisablehook__(error)


def own_flags() -> list[flags.Flag]:
    """The flags that the package and the running program have defined, in the order of their definition."""
    owners = flags.FLAGS.flags_by_module_dict().items()
    ours = [owned for owner, owned in owners if owner == sys.argv[0] or owner.startswith("hfgd_jax.")]
    return [flag for owned in ours for flag in owned]


def usage(about: str, options: Sequence[flags.Flag]) -> str:
    """What `--help` prints: what a command does, its options with their defaults, and a config's fields."""
    lines = [about, "", "options:"]
    for flag in options:
        default = "" if flag.default in (None, "", [], False) else f" (default: {flag.default_as_str})"
        lines.append(f"  --{flag.name}\n      {' '.join((flag.help or '').split())}{default}")
    if any(type(flag).__module__.startswith("ml_collections") for flag in options):
        heading = "the config's fields, with their defaults (a config file may have others):"
        lines += ["", heading, describe.options()]
    return "\n".join(lines)


def check_words(words: Sequence[str]) -> None:
    """Looks at the options of a command line before any of them takes effect.

    Raises:
        UserError: a flag, a field of the config, or a config file that there is not; with the nearest one.
    """
    for word, after in itertools.zip_longest(words, words[1:], fillvalue=""):
        if word == "--":
            return
        if not re.match("--?[a-zA-Z]", word):  # a value; perhaps a negative number
            continue
        flag, equals, value = word.lstrip("-").partition("=")
        name, _, field = flag.partition(".")
        if field and name == "config" and name in flags.FLAGS:
            configuration.check_field(field)
        elif flag == "config" and flag in flags.FLAGS:
            _check_config_file((value if equals else after).partition(":")[0])
        elif flag not in flags.FLAGS and flag.removeprefix("no") not in flags.FLAGS:
            near = nearest(flag, flags.FLAGS)
            raise UserError(f"--{flag}: no such option{f'; did you mean --{near}?' if near else ''}")


def _check_config_file(path: str) -> None:
    if Path(path).is_file():
        return
    folder = Path(path).parent
    there = sorted(str(file) for file in folder.glob("*.py")) if folder.is_dir() else []
    near = nearest(path, there)
    raise UserError(f"--config={path}: no such file{f'; did you mean {near}?' if near else ''}")


def _parse(argv: Sequence[str]) -> list[str]:
    if {"-h", "--help", "-help"} & set(argv[1:]):
        try:
            print(usage(inspect.getdoc(sys.modules["__main__"]) or "", own_flags()), flush=True)
        except BrokenPipeError:  # `--help | head`
            os._exit(0)
        sys.exit(0)
    try:
        check_words(argv[1:])
        rest = flags.FLAGS(argv)
        for name in flags.FLAGS:
            value = flags.FLAGS[name].value
            if type(value).__module__.startswith("ml_collections"):
                _ = value.to_dict  # a config file that was not found raises only when it is used
        return rest
    except flags.IllegalFlagValueError as error:
        missing = re.search(r"Flag --(\w+) must have a value other than None", str(error))
        sys.exit(fail(UserError(f"--{missing[1]}: needed") if missing else error))
    except _FLAG_ERRORS as error:
        sys.exit(fail(error))
