"""Errors that a user can cause, each with the exit code of the command."""

from pathlib import Path


class UserError(Exception):
    """Base class; the message is one line: what is wrong, where, and what to do."""

    exit_code = 2


class ConfigError(UserError):
    """A recipe, a field, an argument or a run directory that cannot be used.

    It is not a ValueError, which a command-line parser would take for its own.
    """


class DataError(UserError):
    """A data set or a weights file that is missing, damaged or of the wrong kind."""

    exit_code = 3


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or of another model."""

    exit_code = 4


class NonFiniteLossError(UserError):
    """A training loss that became NaN or infinite."""

    exit_code = 5


class StoppedError(UserError):
    """A run that a signal stopped after it was saved; the same command resumes it.

    The exit code is EX_TEMPFAIL of sysexits.h, which tells schedulers to try again.
    """

    exit_code = 75


def first_line(error: object) -> str:
    """Returns the first line of a library's error, at most 200 characters."""
    return (str(error).strip() or repr(error)).splitlines()[0][:200]


def reason_for(path: Path, error: Exception) -> str:
    """Returns why `path` cannot be read, without the path, which a message has."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return first_line(error).replace(f" {str(path)!r}", "").rstrip(":")
