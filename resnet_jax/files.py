"""Reads files and writes them atomically."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pooch

from resnet_jax import waiting
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.paths import expand, has_home, shown

_SCRATCH = ".resnet_jax-"
_MAX_JSON = 2**26  # in bytes; this package's files are a thousand times smaller


def check_writable(directory: Path, what: str, option: str) -> None:
    """Creates `directory` and checks that it is writable.

    Calling this function first prevents a failure after hours of work.

    Raises:
      ConfigError: if the directory is not writable. The message contains `what`, a
        description of the directory, and `option`, the flag that sets it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ConfigError(
            f"{what} {directory} cannot be written to ({error.strerror}): choose "
            f"another {option}"
        ) from None


@contextlib.contextmanager
def scratch(directory: Path) -> Iterator[str]:
    """Yields a temporary folder in `directory` and removes it on exit.

    Also removes folders left behind by processes that were killed at least an hour ago.
    """
    remove_scratch(directory, age=3600)
    with tempfile.TemporaryDirectory(dir=directory, prefix=_SCRATCH) as path:
        yield path


def remove_scratch(directory: Path, *, age: float = 0) -> None:
    """Removes the incomplete files that killed processes left behind.

    Args:
      age: minimum number of seconds since the last change; newer files may be in use.
    """
    for path in directory.glob(f"{_SCRATCH}*"):
        with contextlib.suppress(OSError):  # another process may have removed it
            if time.time() - path.stat().st_mtime >= age:
                shutil.rmtree(path, ignore_errors=True)


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file.

    Raises:
      ValueError: if the file is missing, larger than 64 MB, or not JSON.
    """
    return _parse(_read(path))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a JSON Lines file, ignoring an incomplete last line.

    Raises:
      ConfigError: if a line is not a JSON object. The message contains the line number.
    """
    if not path.exists():
        return []
    records = []
    try:
        lines = _read(path).split("\n")[:-1]
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        try:
            record = _parse(line)
            if not isinstance(record, dict):
                raise ValueError("not an object")
        except ValueError as error:
            raise ConfigError(
                f"{path}, line {number}, is not a record ({error}): remove the line"
            ) from None
        records.append(record)
    return records


def _read(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > _MAX_JSON or not path.is_file():
            raise ValueError(
                f"{path} is too large ({size} bytes) or is not a regular file"
            )
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(str(error)) from None


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` atomically.

    Raises:
      ConfigError: if the file cannot be written.
    """
    try:
        with scratch(path.parent) as folder:
            whole = Path(folder, path.name)
            with whole.open("w", encoding="utf-8") as file:
                file.write(shown(text))
                file.flush()
                os.fsync(file.fileno())
            whole.replace(path)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({error.strerror}): choose another path"
        ) from None


def write_json(path: Path, content: dict[str, Any] | list[Any]) -> None:
    """Writes `content` to `path` as JSON, atomically; see write_text."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def cache_dir() -> Path:
    """Returns $RESNET_JAX_CACHE, or this package's folder in the user's cache folder.

    Raises:
      FileNotFoundError: if the user has no home folder, as in some containers.
    """
    named = os.environ.get("RESNET_JAX_CACHE")
    if named:
        return Path(expand(named))
    if not (has_home() or os.environ.get("XDG_CACHE_HOME")):
        reason = "no home folder: set HOME or RESNET_JAX_CACHE"
        raise FileNotFoundError(errno.ENOENT, reason)
    return Path(pooch.os_cache("resnet_jax"))


def make_private(directory: Path) -> None:
    """Creates `directory` and any missing parents with mode 0700.

    The cache contains compiled programs, so other users must not write to it.
    """
    missing = [parent for parent in directory.parents if not parent.exists()]
    for folder in (*reversed(missing), directory):
        folder.mkdir(mode=0o700, exist_ok=True)


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Returns the hexadecimal digest of the file at `path`."""
    found, size = hashlib.new(algorithm), path.stat().st_size
    with path.open("rb") as file, waiting.bar(size, f"hashing {path.name}", "B") as bar:
        while part := file.read(2**22):
            found.update(part)
            bar.update(len(part))
    return found.hexdigest()


def check_sha256(path: Path, sha256: str) -> None:
    """Raises DataError unless the sha256 of the file at `path` starts with `sha256`."""
    found = file_digest(path)
    if not found.startswith(sha256):
        raise DataError(
            f"{path} is damaged: its sha256 starts with {found[: len(sha256)]}, "
            f"not {sha256}; fetch it again"
        )
