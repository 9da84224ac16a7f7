"""The errors a user can cause, each with the exit code that the scripts end with."""

import contextlib
import logging
import sys
from collections.abc import Iterator


class UserError(Exception):
    """An error whose message is one line: what, where, what to do."""

    exit_code = 2


class ConfigError(UserError, ValueError):
    """A recipe, a field, an argument or a run directory that cannot be used."""


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


@contextlib.contextmanager
def command_line(program: str) -> Iterator[None]:
    """The frame of a script: log lines and a UserError's one line go to stderr.

    Exits with the error's code, or with 130 after a Ctrl-C that nothing waited for.
    """
    log = logging.getLogger("resnet_jax")
    log.addHandler(logging.StreamHandler())
    log.setLevel(logging.INFO)
    log.propagate = False
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax narrates every save
    # Where orbax meets a damaged file it leaves tasks whose destructors complain.
    sys.unraisablehook = lambda args: log.debug("ignored: %s", args.exc_value)
    try:
        yield
    except UserError as error:
        print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(130)
