"""One process to a run directory."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock

from resnet_jax import files
from resnet_jax.errors import ConfigError

log = logging.getLogger(__name__)

LOCK, HOLDER = ".lock", ".holder.json"


@contextlib.contextmanager
def claim(run_dir: Path) -> Iterator[None]:
    """Makes `run_dir`, keeps others from it, and cleans up what a dead process left.

    It goes again if nothing was put there. The system frees it if this process dies.

    Raises:
      ConfigError: it cannot be written, or another process holds it.
    """
    files.check_writable(run_dir, "run directory", "--workdir")
    lock = filelock.FileLock(run_dir / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise ConfigError(
            f"{run_dir} is in use by {_describe(_read(run_dir))}: wait for it, stop "
            "it, or choose another --workdir"
        ) from None
    try:
        left = _read(run_dir)
        if left:
            log.warning("%s: taken over from %s, which died", run_dir, _describe(left))
        me = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        files.write_json(run_dir / HOLDER, me)
        files.remove_scratch(run_dir)
        yield
    finally:
        with contextlib.suppress(OSError):  # it has vanished, or cannot be written now
            (run_dir / HOLDER).unlink(missing_ok=True)
            if set(run_dir.iterdir()) <= {run_dir / LOCK}:
                (run_dir / LOCK).unlink(missing_ok=True)
                run_dir.rmdir()
        lock.release()


def _read(run_dir: Path) -> dict[str, Any]:
    """What the holder says of itself, if it does."""
    try:
        found = files.read_json(run_dir / HOLDER)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _describe(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    host, pid, since = (str(holder.get(k))[:80] for k in ("host", "pid", "since"))
    return f"process {pid} on {host} since {since}"
