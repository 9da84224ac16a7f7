"""Code shared by all commands: parsing, logging, error messages and exit codes."""

import contextlib
import errno
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from resnet_jax import waiting
from resnet_jax.commands import environment, usage
from resnet_jax.commands.hugepages import start_with_huge_pages
from resnet_jax.commands.streams import Stream, open_missing
from resnet_jax.config import Config
from resnet_jax.errors import ConfigError, StoppedError, UserError, first_line
from resnet_jax.recipes import RECIPES

log = logging.getLogger(__name__)

T = TypeVar("T")
# File system errors that do not indicate a bug.
_OF_FILES = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO),
    *(errno.ESTALE, errno.ENOLCK, errno.ENAMETOOLONG, errno.ELOOP, errno.EFBIG),
    *(errno.EMFILE, errno.ENFILE),
}


@contextlib.contextmanager
def command_line(
    program: str, *, owns_process: bool = True, is_printed: bool = False
) -> Iterator[None]:
    """Context manager in which a command runs; sends log lines and errors to stderr.

    Prints a UserError on a single line. Exits with the error's exit code, or with 130
    after a Ctrl-C that a training run does not handle itself.

    Args:
      owns_process: whether the process ends with the command. If not, as in Jupyter,
        the process state is restored afterward.
      is_printed: whether the command prints its result, in which case it fails if it
        cannot write to stdout. Training writes its result to files instead.
    """
    if owns_process:
        start_with_huge_pages()
    code = 1
    with _settings(owns_process) as (stack, stdout):
        try:
            if owns_process:
                environment.look()
            yield
            code = 0
        except UserError as error:
            print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
            code = error.exit_code
            if isinstance(error, StoppedError) and owns_process:
                # XLA and TensorStore threads may still be busy with work that was in
                # progress when the signal arrived. In that case, a normal exit can
                # crash (exit code -11).
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        except OSError as error:
            if error.errno not in _OF_FILES or error.filename is None:
                raise
            print(f"{program}: {error.filename}: {error.strerror}", file=sys.stderr)
            code = UserError.exit_code
        except KeyboardInterrupt:
            print(f"{program}: interrupted", file=sys.stderr)
            code = 130
        finally:
            if owns_process:
                stack.pop_all()
                threading.Thread(target=_end, args=(code,), daemon=True).start()
        stdout.flush()
        if stdout.is_lost:
            reason = first_line(stdout.failure)
            print(f"{program}: the output cannot be written: {reason}", file=sys.stderr)
            code = code or int(is_printed)
    sys.exit(code)


@contextlib.contextmanager
def _settings(owns_process: bool) -> Iterator[tuple[contextlib.ExitStack, Stream]]:
    """Sets up logging, warnings and streams for a command.

    Yields the ExitStack that restores the previous settings, and the stream that
    replaces stdout.
    """
    with contextlib.ExitStack() as stack:
        open_missing()
        stdout = Stream(sys.stdout, is_own=owns_process)
        stderr = Stream(sys.stderr, is_own=owns_process)
        stack.enter_context(contextlib.redirect_stdout(stdout))
        stack.enter_context(contextlib.redirect_stderr(stderr))
        ours = logging.getLogger("resnet_jax")
        _hand_to(ours, waiting.LogHandler(), stack)
        narrator = logging.getLogger("asyncio")
        for each, level in ((ours, logging.INFO), (narrator, logging.CRITICAL)):
            stack.callback(each.setLevel, each.level)
            each.setLevel(level)
        # Only the warnings that libraries log are shown. Libraries also raise the
        # errors that they log, so these are reported where they are caught.
        theirs = waiting.LogHandler()
        theirs.addFilter(lambda record: record.levelno == logging.WARNING)
        _hand_to(logging.getLogger("absl"), theirs, stack)
        # After reading a damaged file, orbax leaves behind tasks whose destructors emit
        # warnings.
        stack.callback(setattr, sys, "unraisablehook", sys.unraisablehook)
        sys.unraisablehook = lambda args: log.debug("ignored: %s", args.exc_value)
        stack.enter_context(warnings.catch_warnings())
        stack.callback(setattr, warnings, "formatwarning", warnings.formatwarning)
        warnings.formatwarning = lambda text, *_: f"{first_line(text)}\n"
        warnings.filterwarnings("ignore", "coroutine .* never awaited", RuntimeWarning)
        yield stack, stdout


def _hand_to(
    log: logging.Logger, handler: logging.Handler, stack: contextlib.ExitStack
) -> None:
    """Makes `handler` the only handler that receives the records of `log`."""
    stack.callback(setattr, log, "propagate", log.propagate)
    stack.callback(log.removeHandler, handler)
    log.addHandler(handler)
    log.propagate = False


def _end(code: int) -> None:
    """Ends the process ten seconds after the main thread has ended.

    At exit, Python waits for all threads, but orbax's threads never end after a save
    has failed.
    """
    threading.main_thread().join()
    time.sleep(10)
    os._exit(code)


def parse(options: type[T], description: str | None) -> T:
    """Parses the options of a command from the command line.

    Raises:
      ConfigError: if the command line is invalid.
    """
    return _parse(options, description, sys.argv[1:], usage.program(), grouped=True)


def parse_recipe(description: str | None, args: Sequence[str] | None = None) -> Config:
    """Returns a recipe's configuration with the command-line flags applied.

    Raises:
      ConfigError: if the command line is invalid.
    """
    args, program = sys.argv[1:] if args is None else args, usage.program()
    name = args[0] if args else "--"
    if name in RECIPES:
        about, cfg = RECIPES[name]
        return _parse(Config, about, args[1:], f"{program} {name}", default=cfg)
    if name in ("-h", "--help"):
        width = max(map(len, RECIPES))
        print(f"usage: {program} RECIPE [OPTIONS]\n\n{str(description).strip()}\n")
        print(f"Recipes (`{program} RECIPE --help` lists the options):\n")
        for recipe, (about, _) in RECIPES.items():
            print(f"  {recipe:{width}}  {about}")
        raise SystemExit(0)
    if name.startswith("-"):
        raise ConfigError(
            f"specify a recipe first, as in `{program} digits` (`{program} --help` "
            "lists the recipes)"
        )
    hint = usage.did_you_mean(name, RECIPES)
    raise ConfigError(
        f"unknown recipe {name!r}{hint} (`{program} --help` lists the recipes)"
    )


def _parse(
    options: type[T],
    description: str | None,
    args: Sequence[str],
    program: str,
    *,
    grouped: bool = False,
    **more: Any,
) -> T:
    import tyro

    usage.check_flags(options, args, program)
    if not {"-h", "--help"}.isdisjoint(args):  # tyro would rewrap paragraphs
        print(f"{str(description).strip()}\n")
    usage.describe(options)
    parsed: Any = usage.in_groups(options) if grouped else options
    with usage.one_line(program):
        found = tyro.cli(
            parsed,
            prog=program,
            description="",
            args=args,
            config=(tyro.conf.OmitArgPrefixes,),  # flags without group prefixes
            **more,
        )
    made: T = usage.from_groups(options, found) if grouped else found
    return made
