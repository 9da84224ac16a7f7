"""Images that are read while a network trains on them, by grain."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from resnet_jax import folder, prepared
from resnet_jax.errors import ConfigError, DataError

T = TypeVar("T")
_opening = threading.Lock()


@dataclass(frozen=True)
class Pictures:
    """Images in files, in the place of an array of uint8: indexing reads nothing.

    np.asarray reads those that are left.
    """

    read: Callable[[np.ndarray], np.ndarray]  # of indices [n], uint8 [n, H, W, C]
    indices: np.ndarray  # [N] int64
    image_shape: tuple[int, int, int]

    dtype = np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        return len(self.indices), *self.image_shape

    @property
    def nbytes(self) -> int:
        """What they would take in memory."""
        return int(np.prod(self.shape))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, rows: Any) -> "Pictures":
        return replace(self, indices=self.indices[rows])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.read(self.indices).astype(dtype or np.uint8, copy=False)


@dataclass(frozen=True)
class _Folder:
    """Reads a folder's pictures; see folder.read_picture."""

    paths: list[Path]
    size: int
    crop_pct: float

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        shape = (len(indices), self.size, self.size, 3)
        images = np.empty(shape, np.uint8)
        for image, index in zip(images, indices, strict=True):
            path = self.paths[index]
            try:
                image[:] = folder.read_picture(
                    path, size=self.size, crop_pct=self.crop_pct
                )
            except Exception as error:  # Pillow's readers raise of every kind
                reason = (str(error).strip() or repr(error)).splitlines()[0][:200]
                raise DataError(
                    f"{path} cannot be read ({reason}): remove it"
                ) from None
        return images


class _Records:
    """Reads the images of a prepared directory's array_record files."""

    def __init__(self, directory: Path, split: str, positions: np.ndarray) -> None:
        self._place = directory, split
        self._positions = positions
        self._source: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_source": None}  # each process opens its own

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        directory, split = self._place
        try:
            with _opening:  # threads that import tensorflow-datasets at once block
                if self._source is None:
                    # In a process of its own nobody has said so yet.
                    logging.getLogger("absl").setLevel(logging.ERROR)
                    self._source = prepared.open_records(directory, split)
            positions = self._positions[indices].tolist()
            records = self._source.__getitems__(positions)
            return np.stack([record["image"] for record in records])
        except Exception as error:  # tfds and its readers raise of every kind
            reason = (str(error).strip() or repr(error)).splitlines()[0][:200]
            raise prepared.damaged(directory, reason) from error


def from_folder(
    data_dir: Path, split: str, *, size: int, crop_pct: float
) -> tuple[Pictures, np.ndarray]:
    """What folder.load gives, images to be read."""
    paths, labels = folder.listing(data_dir, split)
    pictures = Pictures(
        _Folder(paths, size, crop_pct), np.arange(len(paths)), (size, size, 3)
    )
    return pictures, labels


def from_records(directory: Path, split: str) -> tuple[Pictures, np.ndarray]:
    """(images, labels) of a prepared directory, in the order of their ids.

    Raises:
      DataError: it cannot be read, or is not of array_record files.
    """
    positions, labels = prepared.index(directory, split)
    return Pictures(
        _Records(directory, split, positions), np.arange(len(labels)), (32, 32, 3)
    ), labels


def is_large(num_bytes: int) -> bool:
    """Whether so many bytes are over half of the machine's memory."""
    return num_bytes > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2


@dataclass(frozen=True)
class _Parcel:
    """What a worker sends in one piece, in a pipe.

    Bare arrays grain sends in shared memory, of which it leaves some behind when its
    workers are stopped.
    """

    content: Any


@dataclass(frozen=True)
class _Parcels(Sequence[_Parcel]):
    items: Sequence[Any]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: Any) -> _Parcel:
        return _Parcel(self.items[number])


def _ignore_interrupts(index: int, count: int) -> None:
    """Leaves a terminal's Ctrl-C, which reaches workers too, to the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def prefetched(items: Sequence[T], workers: int) -> Generator[T]:
    """`items` in their order, got ahead by `workers` processes, or threads where 0.

    Raises:
      ConfigError: grain is not installed.
    """
    try:
        import grain
        from absl import flags
    except ImportError:
        raise ConfigError(
            "stream needs grain: pip install 'resnet-flax-linen[stream]'"
        ) from None
    if not flags.FLAGS.is_parsed():  # which grain's workers ask for
        flags.FLAGS.mark_as_parsed()
    options = grain.ReadOptions(num_threads=4, prefetch_buffer_size=4)
    dataset = grain.MapDataset.source(_Parcels(items)).to_iter_dataset(options)
    if workers:
        processes = grain.MultiprocessingOptions(
            num_workers=workers, per_worker_buffer_size=2
        )
        dataset = dataset.mp_prefetch(processes, worker_init_fn=_ignore_interrupts)
    reader = iter(dataset)
    try:
        for parcel in reader:
            yield parcel.content
    finally:
        reader.close()
