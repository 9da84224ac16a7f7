"""The frame of a command: its log lines, its errors in a line, its exit code."""

import contextlib
import io
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import TypeVar

from resnet_jax.commands.hugepages import start_with_huge_pages
from resnet_jax.config import Config
from resnet_jax.errors import StoppedError, UserError
from resnet_jax.recipes import RECIPES

T = TypeVar("T")


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
    # What libraries warn of is shown; their errors are raised as well, and are told by
    # whoever catches them.
    theirs = logging.StreamHandler()
    theirs.addFilter(lambda record: record.levelno == logging.WARNING)
    logging.getLogger("absl").addHandler(theirs)
    logging.getLogger("absl").propagate = False
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
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


def parse(options: type[T], description: str | None) -> T:
    """The options of a command, from the command line; flags have no prefixes."""
    import tyro

    return tyro.cli(options, description=description)


def parse_recipe(description: str | None, args: Sequence[str] | None = None) -> Config:
    """A recipe with what the flags change; each group has a box in --help."""
    import tyro

    return tyro.extras.overridable_config_cli(
        RECIPES,
        description=description,
        args=args,
        config=(tyro.conf.OmitArgPrefixes,),
    )
