"""Errors that a user can cause, with their exit codes."""

from pathlib import Path


class UserError(Exception):
    """Base class of errors whose one-line message says what is wrong and what to do."""

    exit_code = 2


class ConfigError(UserError):
    """A recipe, a field, an argument or a run directory that cannot be used.

    It is not a ValueError, because a command-line parser would treat a ValueError as a
    parsing error.
    """


class DataError(UserError):
    """A data set or weights file that is missing, damaged or of the wrong kind."""

    exit_code = 3


class CheckpointError(UserError):
    """A checkpoint that is missing or damaged, or belongs to another model."""

    exit_code = 4


class NonFiniteLossError(UserError):
    """A training loss that became NaN or infinite."""

    exit_code = 5


class StoppedError(UserError):
    """A run that was saved and then stopped by a signal; the same command resumes it.

    The exit code is EX_TEMPFAIL from sysexits.h, which tells schedulers to retry.
    """

    exit_code = 75


def first_line(error: object) -> str:
    """Returns the first line of an error message, truncated to 200 characters."""
    return (str(error).strip() or repr(error)).splitlines()[0][:200]


def reason_for(path: Path, error: Exception) -> str:
    """Returns why `path` cannot be read, without repeating the path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return first_line(error).replace(f" {str(path)!r}", "").rstrip(":")
