"""Writes tables as CSV, JSON, JSON Lines or Parquet, depending on the suffix."""

import contextlib
import csv
import importlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from resnet_jax import files
from resnet_jax.errors import ConfigError
from resnet_jax.paths import shown

Columns = Mapping[str, type]  # maps column names to str, int, float or bool
Write = Callable[[Sequence[Sequence[Any]]], None]  # writes rows of values
_GROUP = 16_384  # minimum number of rows per Parquet row group, except the last


def check(path: Path, option: str) -> None:
    """Raises ConfigError unless `path`, given by the flag `option`, can be written.

    The suffix must be supported, and writing Parquet requires pyarrow.
    """
    if path.suffix.lower() not in _WRITERS:
        raise ConfigError(
            f"{option} {path} has no known suffix: use one of {', '.join(_WRITERS)}"
        )
    if path.suffix.lower() == ".parquet":
        try:
            importlib.import_module("pyarrow.parquet")
        except ImportError:
            raise ConfigError(
                f"{option} {path} needs pyarrow: run `pip install -e .` to install "
                "it, or use the suffix .csv"
            ) from None
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder: specify a file")
    files.check_writable(path.parent, "folder", option)


@contextlib.contextmanager
def writing(path: Path, columns: Columns) -> Iterator[Write]:
    """Yields a function that writes rows to `path`.

    On exit, an existing file is replaced; if an error is raised, it is kept.

    Raises:
      ConfigError: if the file cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with _said(path):
            whole = Path(stack.enter_context(files.scratch(path.parent)), path.name)
            rows = contextlib.ExitStack()
            write = rows.enter_context(_WRITERS[path.suffix.lower()](whole, columns))

        def write_safely(part: Sequence[Sequence[Any]]) -> None:
            with _said(path):
                write(part)

        try:
            yield write_safely
        except BaseException:
            with contextlib.suppress(OSError):  # on a full disk, closing fails as well
                rows.close()
            raise
        with _said(path):
            rows.close()
            with whole.open("rb+") as file:
                os.fsync(file.fileno())
            whole.replace(path)


@contextlib.contextmanager
def _said(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(
            f"{path} cannot be written ({reason}): choose another path"
        ) from None


@contextlib.contextmanager
def _open(path: Path) -> Iterator[IO[str]]:
    with path.open("w", encoding="utf-8", newline="") as file:
        yield file


@contextlib.contextmanager
def _csv(path: Path, columns: Columns) -> Iterator[Write]:
    with _open(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(map(shown, columns))

        def write(rows: Sequence[Sequence[Any]]) -> None:
            writer.writerows([map(_for_csv, row) for row in rows])

        yield write


def _for_csv(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return _text(value)


def _text(value: Any) -> Any:
    """Returns `value`; in a str, characters that UTF-8 cannot encode are escaped."""
    return shown(value) if isinstance(value, str) else value


def _object(columns: Columns, row: Sequence[Any]) -> str:
    """Returns `row` as a JSON object in which non-finite values become null."""
    content = {
        shown(name): None
        if isinstance(value, float) and not math.isfinite(value)
        else _text(value)
        for name, value in zip(columns, row, strict=True)
    }
    return json.dumps(content, ensure_ascii=False)


@contextlib.contextmanager
def _jsonl(path: Path, columns: Columns) -> Iterator[Write]:
    with _open(path) as file:
        yield lambda rows: file.writelines(f"{_object(columns, r)}\n" for r in rows)


@contextlib.contextmanager
def _json(path: Path, columns: Columns) -> Iterator[Write]:
    with _open(path) as file:
        separator = "[\n"

        def write(rows: Sequence[Sequence[Any]]) -> None:
            nonlocal separator
            for row in rows:
                file.write(separator + _object(columns, row))
                separator = ",\n"

        yield write
        file.write("[]\n" if separator == "[\n" else "\n]\n")


@contextlib.contextmanager
def _parquet(path: Path, columns: Columns) -> Iterator[Write]:
    pa = importlib.import_module("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    schema = pa.schema([(shown(name), kinds[kind]) for name, kind in columns.items()])
    waiting: list[Sequence[Any]] = []
    # Pass an open file: pyarrow misinterprets some names as URLs and rejects others.
    with path.open("wb") as file, parquet.ParquetWriter(file, schema) as writer:

        def flush() -> None:
            if waiting:
                values = [
                    list(map(_text, column)) for column in zip(*waiting, strict=True)
                ]
                writer.write_table(pa.table(values, schema=schema))
                waiting.clear()

        def write(rows: Sequence[Sequence[Any]]) -> None:
            waiting.extend(rows)
            if len(waiting) >= _GROUP:
                flush()

        yield write
        flush()


_WRITERS: dict[str, Callable[[Path, Columns], Any]] = {
    ".csv": _csv,
    ".json": _json,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
