"""The exceptions that a user is meant to read."""


class UserError(ValueError):
    """Bad input. The message names the thing, the value and the way out, on one line.

    Commands print it without a traceback and exit with code 2. It takes one string, so that it can be
    pickled between data workers.
    """


class StuckError(UserError):
    """Something that does not come to an end: a thread that no orderly exit can wait for.

    Commands print it and leave at once, with exit code 2.
    """
