"""The errors a user can cause, each with the exit code that a command ends with."""


class UserError(Exception):
    """An error whose message is one line: what, where, what to do."""

    exit_code = 2


class ConfigError(UserError):
    """A recipe, a field, an argument or a run directory that cannot be used.

    No ValueError: a parser of command lines would take it for one of its own.
    """


class DataError(UserError):
    """A data set or a weights file that is missing, damaged or of the wrong kind."""

    exit_code = 3


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or of another model."""

    exit_code = 4


class NonFiniteLossError(UserError):
    """A training loss that became NaN or infinite."""

    exit_code = 5


class StoppedError(UserError):
    """A run that a signal stopped, after saving: the same command goes on from there.

    The exit code is EX_TEMPFAIL of sysexits.h, which schedulers read as "run it again".
    """

    exit_code = 75


def first_line(error: object) -> str:
    """The first line, at most 200 characters, of what a library's error says."""
    return (str(error).strip() or repr(error)).splitlines()[0][:200]
