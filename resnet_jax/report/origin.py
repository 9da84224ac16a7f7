"""Where a page comes from: the command, the time, and the version of the program."""

import datetime
import shlex
import subprocess
import sys
from pathlib import Path

from resnet_jax.weights import export


def describe() -> dict[str, str]:
    """Returns the command line, the time in UTC, and the version and commit."""
    program = Path(sys.argv[0]).name
    command = shlex.join([program, *sys.argv[1:]])
    now = datetime.datetime.now(datetime.UTC)
    version = export.version("resnet-flax-linen") or "not installed"
    commit = _commit()
    return {
        "command": command,
        "date": now.strftime("%Y-%m-%d %H:%M UTC"),
        "version": version + (f", commit {commit}" if commit else ""),
    }


def _commit() -> str | None:
    """Returns the commit of the checkout that this package is in, if it is in one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
