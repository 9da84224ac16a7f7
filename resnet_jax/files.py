"""Files of a run: read as they are, written whole or not at all."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from resnet_jax.errors import ConfigError


def check_writable(directory: Path, what: str, option: str) -> None:
    """Makes `directory` and tries it, before hours of work depend on it.

    Raises:
      ConfigError: `what`, which `option` chooses, cannot be written there.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ConfigError(
            f"{what} {directory} cannot be written ({error.strerror}): "
            f"choose another {option}"
        ) from None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines; an unfinished last line is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path`, whole or not at all.

    Raises:
      ConfigError: it cannot be written there.
    """
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as scratch:
            whole = Path(scratch, path.name)
            with whole.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            whole.replace(path)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({error.strerror}): choose another place"
        ) from None


def write_json(path: Path, content: dict[str, Any] | list[Any]) -> None:
    """Writes `content` to `path` as write_text does."""
    write_text(path, json.dumps(content, indent=2) + "\n")
