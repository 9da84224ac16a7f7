"""Passes batches from worker processes through shared memory instead of a pipe.

Grain also passes plain arrays through shared memory, but leaves some of them there when
its workers stop. Here, each batch is a file, which the receiver opens and then
immediately removes. The folder that contains these files is removed when the receiver
stops.
"""

import contextlib
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
_SHARED_MEMORY = Path("/dev/shm")  # on Linux; elsewhere, batches are sent via pipes


@dataclass(frozen=True)
class Batch:
    """A batch to send; pickling writes its arrays to a file if `directory` is given.

    The content is None if the file was removed before the batch was received.
    """

    content: Any
    directory: Path | None

    def __reduce__(self) -> tuple[Callable[..., "Batch"], tuple[Any, ...]]:
        arrays = self.content
        is_plain = not isinstance(arrays, dict) or not all(
            isinstance(array, np.ndarray) for array in arrays.values()
        )
        if self.directory is None or is_plain:
            return Batch, (self.content, None)
        try:
            path = _write(arrays, self.directory)
        except OSError:  # no space is left: a container's /dev/shm may have only 64 MB
            return Batch, (self.content, None)
        forms = {name: (a.shape, a.dtype.str) for name, a in arrays.items()}
        return _receive, (path, forms)


@dataclass(frozen=True)
class Batches(Sequence[Batch]):
    """A sequence that wraps each of `items` in a Batch."""

    items: Sequence[Any]
    directory: Path | None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: Any) -> Any:
        return Batch(self.items[number], self.directory)


@contextlib.contextmanager
def folder() -> Iterator[Path | None]:
    """Yields a new folder in shared memory, or None if it cannot be created."""
    try:
        made = Path(tempfile.mkdtemp(prefix="resnet_jax-", dir=_SHARED_MEMORY))
    except OSError:
        yield None
        return
    try:
        yield made
    finally:
        remove(made)


def remove(directory: Path | None) -> None:
    """Removes a folder of batches; workers call this if their parent is killed."""
    if directory is not None:
        shutil.rmtree(directory, ignore_errors=True)


def _write(arrays: Arrays, directory: Path) -> str:
    descriptor, path = tempfile.mkstemp(dir=directory)
    try:
        with open(descriptor, "wb", buffering=0) as file:
            for array in arrays.values():
                rest = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
                while rest:  # Linux writes at most 2 GiB at a time
                    rest = rest[file.write(rest) :]
                file.seek(-file.tell() % mmap.PAGESIZE, os.SEEK_CUR)  # aligned
            file.truncate()
    except OSError:
        os.unlink(path)
        raise
    return path


def _receive(path: str, forms: dict[str, tuple[tuple[int, ...], str]]) -> Batch:
    try:
        file = open(path, "rb")
    except FileNotFoundError:  # systemd removes such files when a user logs out
        return Batch(None, None)
    with file:
        os.unlink(path)
        held = mmap.mmap(
            file.fileno(),
            0,
            flags=mmap.MAP_SHARED | mmap.MAP_POPULATE,
            prot=mmap.PROT_READ,
        )
    arrays, start = {}, 0
    for name, (shape, dtype) in forms.items():
        array = np.ndarray(shape, dtype, held, start)
        arrays[name] = array
        start += array.nbytes + -array.nbytes % mmap.PAGESIZE
    return Batch(arrays, None)
