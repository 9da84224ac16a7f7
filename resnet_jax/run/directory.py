"""The run directory: its configuration, its lock, and the checks before resuming."""

import contextlib
import dataclasses
import errno
import logging
import os
import socket
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock

from resnet_jax import fields, files
from resnet_jax.config import Config
from resnet_jax.data.dataset import changed, differing
from resnet_jax.errors import ConfigError

log = logging.getLogger(__name__)

CONFIG = "config.json"
CLASSES = "classes.json"
METRICS = "metrics.jsonl"
LAYERS = "layers.jsonl"
CHECKPOINTS = "checkpoints"  # a folder
WANDB = "wandb.json"  # the run's id in Weights & Biases
FILES = (CONFIG, CLASSES, METRICS, LAYERS, WANDB)
LOCK, SOFT_LOCK, HOLDER = ".lock", ".lock.soft", ".holder.json"
# Errors from file systems that do not support locks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}


def write_config(run_dir: Path, cfg: Config, class_names: list[str]) -> None:
    """Writes config.json and classes.json.

    config.json contains the fields of `cfg`, nested by group. It stores the absolute
    path of the run directory, so that neighboring files can still be found after the
    directory and these files have been moved together.
    """
    cfg = fields.replace(cfg, workdir=str(Path(cfg.run.workdir).absolute()))
    files.write_json(run_dir / CONFIG, dataclasses.asdict(cfg))
    files.write_json(run_dir / CLASSES, class_names)


def read_config(path: Path) -> Config:
    """Reads the Config that was written to `path`.

    Raises:
      ConfigError: if the file is missing or is not JSON, or if a field is unknown or
        has the wrong type.
    """
    try:
        values = files.read_json(path)
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read as a run's config: {error}") from None
    return fields.from_json(Config, values, str(path))


def read_run(run_dir: Path) -> Config:
    """Returns the configuration of the run in `run_dir`.

    Raises:
      ConfigError: if the directory does not exist or has no valid config.json.
    """
    if not run_dir.is_dir():
        raise ConfigError(f"no run at {run_dir}: there is no such directory")
    if not (run_dir / CONFIG).is_file():
        raise ConfigError(f"{run_dir} is not a run: it has no {CONFIG}")
    return read_config(run_dir / CONFIG)


def moved(then: str | None, cfg: Config, run_dir: Path) -> str | None:
    """Returns the current path of `then`, a file that may have moved with the run."""
    if then is None or Path(then).exists():
        return then
    way = os.path.relpath(then, cfg.run.workdir)
    now = os.path.normpath(run_dir.absolute() / way)
    return now if Path(now).exists() else then


def read_classes(run_dir: Path) -> tuple[str, ...] | None:
    """Returns the class names of the run in `run_dir`, or None if they are not stored.

    Raises:
      ConfigError: if the file does not contain a list of names.
    """
    path = run_dir / CLASSES
    if not path.exists():
        return None
    try:
        names = files.read_json(path)
        if not isinstance(names, list) or not all(isinstance(x, str) for x in names):
            raise ValueError("not a list of names")
    except ValueError as error:
        raise ConfigError(
            f"{path} cannot be read as a list of class names ({error}): remove it"
        ) from None
    return tuple(names)


def newest_step(run_dir: Path) -> int | None:
    """Returns the step of the newest complete checkpoint in `run_dir`, or None.

    Each checkpoint is stored in a folder named after its step.
    """
    names = [path.name for path in run_dir.glob(f"{CHECKPOINTS}/*")]
    return max((int(name) for name in names if name.isdecimal()), default=None)


def remove_unsaved(run_dir: Path, written: Iterable[str]) -> None:
    """Removes the files named in `written` unless the run has a checkpoint."""
    if newest_step(run_dir) is not None:
        return
    with contextlib.suppress(OSError):  # rmdir fails if the folder is not empty
        for name in written:
            (run_dir / name).unlink(missing_ok=True)
        # If metrics.jsonl remains, keep the folder as a sign that the file is from a
        # killed run.
        if not (run_dir / METRICS).exists():
            (run_dir / CHECKPOINTS).rmdir()


def check_data(run_dir: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises ConfigError if the data `now` is not the run's original data `then`.

    `then` and `now` are results of data.dataset.identify.
    """
    others = changed(then, now)
    if others:
        where = ""
        if "classes" in others:
            where = f" ({differing(then['classes'], now['classes'])})"
        raise ConfigError(
            f"{run_dir} was started with different {' and '.join(others)}{where}: "
            "restore the originals, or choose another --workdir for a new run"
        )


def check_resumable(cfg: Config, run_dir: Path) -> str:
    """Describes the fields of a run that `cfg` overrides; returns "" if there are none.

    Raises:
      ConfigError: if the directory contains another run.
    """
    # A run that was killed before its first checkpoint leaves an empty checkpoint
    # folder.
    if not (run_dir / CHECKPOINTS).is_dir() and (run_dir / METRICS).is_file():
        if (run_dir / METRICS).stat().st_size:
            raise ConfigError(
                f"{run_dir} contains the metrics of a run but none of its checkpoints: "
                "choose another --workdir, or remove the directory"
            )
    if newest_step(run_dir) is None:
        return ""
    changed = fields.changes(read_config(run_dir / CONFIG), cfg)
    if not changed:
        return ""
    shown = ", ".join(
        f"{name} {old} -> {new}" for name, (old, new, _) in changed.items()
    )
    allowed = all(resume == "override" for _, _, resume in changed.values())
    if not cfg.run.override or not allowed:
        way = "use --override to resume it, or " if allowed else ""
        raise ConfigError(
            f"{run_dir} contains a run with another configuration ({shown}): "
            f"{way}choose another --workdir for a new run"
        )
    return f", configuration overridden: {shown}"


@contextlib.contextmanager
def claim(run_dir: Path) -> Iterator[None]:
    """Context manager that creates and locks `run_dir`.

    On entry, temporary files that a dead process left behind are removed. On exit, the
    directory is removed if it is empty. If this process dies, the operating system
    releases the lock, except on file systems without lock support, where a file serves
    as the lock.

    Raises:
      ConfigError: if the directory cannot be written or is used by another process.
    """
    files.check_writable(run_dir, "run directory", "--workdir")
    lock: filelock.BaseFileLock = filelock.FileLock(run_dir / LOCK)
    try:
        try:
            lock.acquire(timeout=0)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            lock = filelock.SoftFileLock(run_dir / SOFT_LOCK)
            lock.acquire(timeout=0)
    except filelock.Timeout:
        raise ConfigError(
            f"{run_dir} is in use by {_describe(_read(run_dir))}: wait for it, stop "
            "it, or choose another --workdir"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{run_dir} cannot be locked ({error.strerror}): choose another --workdir"
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
        with contextlib.suppress(OSError):  # the directory may be gone or read-only
            (run_dir / HOLDER).unlink(missing_ok=True)
            if set(run_dir.iterdir()) <= {run_dir / LOCK, run_dir / SOFT_LOCK}:
                (run_dir / LOCK).unlink(missing_ok=True)
                lock.release()  # also removes a soft lock
                run_dir.rmdir()
        lock.release()


def _read(run_dir: Path) -> dict[str, Any]:
    """Returns the host, PID and start time recorded by the lock's holder, or {}."""
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
