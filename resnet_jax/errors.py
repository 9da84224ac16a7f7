"""The errors a user can cause, each with the exit code that the scripts end with."""

import contextlib
import io
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator

from resnet_jax.hugepages import start_with_huge_pages


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
    start_with_huge_pages()
    log = logging.getLogger("resnet_jax")
    log.addHandler(logging.StreamHandler())
    log.setLevel(logging.INFO)
    log.propagate = False
    # Names of files need not be text: those that are not are shown escaped.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for narrator in ("absl", "asyncio"):  # orbax's, of every save and every failure
        logging.getLogger(narrator).setLevel(logging.CRITICAL)
    # Where orbax meets a damaged file it leaves tasks whose destructors complain.
    sys.unraisablehook = lambda args: log.debug("ignored: %s", args.exc_value)
    warnings.filterwarnings("ignore", "coroutine .* never awaited", RuntimeWarning)
    code = 1
    try:
        yield
        code = 0
    except UserError as error:
        print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
        code = error.exit_code
        if isinstance(error, StoppedError):
            # Threads of XLA and TensorStore may be at work still for what the signal
            # cut off; Python's own end would crash with them (seen: exit -11).
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        code = 130
    finally:
        threading.Thread(target=_end, args=(code,), daemon=True).start()
    sys.exit(code)


def _end(code: int) -> None:
    """Ends the process ten seconds after Python began to.

    It waits for all threads, and orbax's wait for ever after a save that failed.
    """
    threading.main_thread().join()
    time.sleep(10)
    os._exit(code)
