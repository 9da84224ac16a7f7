"""The origin of a page: the command, the time, and the version of the program."""

import datetime
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from resnet_jax.report.page import Card
from resnet_jax.weights import export


def card(headline: Mapping[str, str] = {}, others: Mapping[str, str] = {}) -> Card:
    """Returns a card with the command line, the time in UTC, and the version.

    Args:
      headline: values to show first, in large type.
      others: values to show before the time and the version.
    """
    now = datetime.datetime.now(datetime.UTC)
    version = export.version("resnet-flax-linen") or "not installed"
    commit = _commit()
    where = {
        "date": now.strftime("%Y-%m-%d %H:%M UTC"),
        "version": version + (f", commit {commit}" if commit else ""),
    }
    return Card(headline, {**others, **where}, {"command": _command()})


def _command() -> str:
    """Returns the command line of this process as it was typed, quoted for a shell.

    The folders of the interpreter and of an installed program are left out, because a
    shell can find both programs by name.
    """
    interpreter, *words = sys.orig_argv or [""]
    program = Path(interpreter).name
    if words and not words[0].startswith("-") and Path(words[0]).suffix != ".py":
        program, *words = Path(words[0]).name, *words[1:]  # such as resnet-jax
    return shlex.join([program, *words])


def _commit() -> str | None:
    """Returns the commit of this package's checkout, or None if there is none."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
