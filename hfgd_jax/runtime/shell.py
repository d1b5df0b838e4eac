"""What every command shares: parsed flags, exit codes, and one line for an error of the user."""

import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from hfgd_jax.errors import UserError, printable

USER_ERROR = 2
INTERRUPTED = 130

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
    with 130, without a traceback. Anything else is a bug and keeps its traceback. `--help` exits with 0.

    Args:
        main: the command.
        on_failure: called with the exit code of a failure; it may end the process (`processes.end_now`).
    """

    def guarded(argv: Sequence[str]) -> int | None:
        if not flags.FLAGS["verbosity"].present:  # the libraries' own log lines; --verbosity=0 shows them
            logging.set_verbosity(logging.FATAL)
        try:
            if len(argv) > 1:
                raise UserError(f"unexpected argument {argv[1]!r}; options are written --name=value")
            return main(argv)
        except UserError as error:
            code = fail(error)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            code = INTERRUPTED
        except Exception:
            on_failure(1)
            raise
        on_failure(code)
        return code

    sys.unraisablehook = _report_unraisable
    app.run(guarded, flags_parser=_parse)


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


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        for name in flags.FLAGS:
            value = flags.FLAGS[name].value
            if type(value).__module__.startswith("ml_collections"):
                _ = value.to_dict  # a config file that was not found raises only when it is used
        return rest
    except _FLAG_ERRORS as error:
        sys.exit(fail(error))
    except SystemExit:  # absl's --help, which exits with 1
        sys.exit(0)
