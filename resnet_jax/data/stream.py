"""Images that are read while a network trains on them, by grain."""

import contextlib
import itertools
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from resnet_jax import limits
from resnet_jax.data import examples, folder, pillow, tfds
from resnet_jax.errors import ConfigError, DataError, first_line

if TYPE_CHECKING:
    from PIL import Image

T = TypeVar("T")
Opened = AbstractContextManager["Image.Image"]
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_opening = threading.Lock()


class Reader(Protocol):
    """What reads images by their indices; it is sent to other processes."""

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """uint8 [n, H, W, C] of indices [n], as evaluation has them."""

    def open(self, indices: np.ndarray) -> Iterable[Opened]:
        """The images at `indices` as they are stored, each to be opened in its turn."""

    def name(self, index: int) -> str:
        """What an image is called in a message."""


class Draw(Protocol):
    """What augments images; see transforms.Drawing."""

    @property
    def image_shape(self) -> tuple[int, int, int]: ...

    def __call__(
        self, indices: np.ndarray, epoch: int, turns: np.ndarray
    ) -> np.ndarray:
        """uint8 [n, H, W, C] of indices [n], as training has them in an epoch."""


@dataclass(frozen=True)
class Images:
    """Images in files, in the place of an array of uint8: indexing reads nothing.

    np.asarray reads those that are left.
    """

    read: Reader
    indices: np.ndarray  # [N] int64
    image_shape: tuple[int, int, int]
    draw: Draw | None = None  # how training has them, if it is another way
    is_cropped: bool = False  # whether they are the middle of larger ones

    dtype = np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        return len(self.indices), *self.image_shape

    @property
    def nbytes(self) -> int:
        """What they would take in memory."""
        return int(np.prod(self.shape))

    @property
    def train_shape(self) -> tuple[int, int, int]:
        """(H, W, C) in training."""
        return self.image_shape if self.draw is None else self.draw.image_shape

    def drawn(self, epoch: int, turns: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, C] as training has them: `turns` [N] of each in `epoch`."""
        if self.draw is None:
            return self.read(self.indices)
        return self.draw(self.indices, epoch, turns)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, rows: Any) -> "Images":
        return replace(self, indices=self.indices[rows])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.read(self.indices).astype(dtype or np.uint8, copy=False)


@dataclass(frozen=True)
class _Folder:
    """Reads a folder's images; see pillow.read_image."""

    paths: list[Path]
    size: int
    crop_pct: float
    interpolation: str

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        shape = (len(indices), self.size, self.size, 3)
        images = np.empty(shape, np.uint8)
        for image, index in zip(images, indices, strict=True):
            path = self.paths[index]
            try:
                image[:] = pillow.read_image(
                    path,
                    size=self.size,
                    crop_pct=self.crop_pct,
                    interpolation=self.interpolation,
                )
            except Exception as error:  # Pillow's readers raise of every kind
                reason = first_line(error)
                raise DataError(
                    f"{path} cannot be read ({reason}): remove it"
                ) from None
        return images

    def open(self, indices: np.ndarray) -> Iterable[Opened]:
        return (pillow.opened(self.paths[index]) for index in indices)

    def name(self, index: int) -> str:
        return str(self.paths[index])


@dataclass(frozen=True)
class Arrays:
    """Reads images that are in memory, [N, H, W, C] uint8, where training draws."""

    images: np.ndarray

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.images[indices]
        return found

    def open(self, indices: np.ndarray) -> Iterable[Opened]:
        from PIL import Image

        is_grey = self.images.shape[-1] == 1
        for pixels in self(indices):
            image = Image.fromarray(pixels[..., 0] if is_grey else pixels)
            yield contextlib.nullcontext(image)

    def name(self, index: int) -> str:
        return f"image {index}"


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
        with tfds.reading(directory):
            with _opening:  # threads that import tensorflow-datasets at once block
                if self._source is None:
                    # In a process of its own nobody has said so yet.
                    logging.getLogger("absl").setLevel(logging.ERROR)
                    self._source = tfds.open_records(directory, split)
            positions = self._positions[indices].tolist()
            records = self._source.__getitems__(positions)
            return np.stack([record["image"] for record in records])

    def open(self, indices: np.ndarray) -> Iterable[Opened]:
        return Arrays(self(indices)).open(np.arange(len(indices)))

    def name(self, index: int) -> str:
        directory, split = self._place
        return f"{directory}: {split} image {index}"


def from_folder(
    split: folder.Split,
    *,
    size: int,
    crop_pct: float,
    interpolation: str = "bilinear",
) -> tuple[Images, np.ndarray]:
    """What folder.load gives, images to be read."""
    images = Images(
        _Folder(split.paths, size, crop_pct, interpolation),
        np.arange(len(split.paths)),
        (size, size, 3),
        is_cropped=True,
    )
    return images, split.labels


def from_records(
    directory: Path, split: str, published: tfds.Published
) -> tuple[Images, np.ndarray]:
    """(images, labels) of a prepared directory, in the order of their ids.

    Raises:
      DataError: it cannot be read, is not of array_record files, or has not as many
        examples or classes as `published`.
    """
    positions, labels = tfds.index(directory, split, published)
    read, rows = _Records(directory, split, positions), np.arange(len(labels))
    return Images(read, rows, published.image_shape), labels


def from_examples(reader: examples.Reader) -> tuple[Images, np.ndarray]:
    """What its load gives, images to be read.

    Raises:
      DataError: the labels cannot be read.
    """
    labels = reader.labels()
    rows, is_cropped = np.arange(len(labels)), reader.is_cropped
    return Images(reader, rows, reader.image_shape, is_cropped=is_cropped), labels


def is_large(num_bytes: int) -> bool:
    """Whether so many bytes are over half of the memory that there is."""
    return num_bytes > limits.memory() / 2


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

    def __getitem__(self, number: Any) -> Any:
        return _Parcel(self.items[number])


def _begin_worker(index: int, count: int) -> None:
    """Leaves signals to the main process, and ends when that does.

    A terminal's Ctrl-C and a scheduler's SIGTERM reach workers too, and the main
    process needs them to finish its step.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _shielded() -> Iterator[None]:
    """A context in which processes begin that signals do not reach, from the start.

    They inherit what this thread blocks, and take seconds to come to _begin_worker.
    What is sent to this process meanwhile reaches another of its threads, or waits.
    """
    resource_tracker.ensure_running()  # which unblocks them where it begins
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def prefetched(items: Sequence[T], workers: int) -> Generator[T]:
    """`items` in their order, got ahead by `workers` processes, or threads where 0.

    Raises:
      ConfigError: grain is not installed.
    """
    try:
        import grain
        from absl import flags
    except ImportError:
        raise ConfigError("stream needs grain: pip install -e '.[stream]'") from None
    if not flags.FLAGS.is_parsed():  # which grain's workers ask for
        flags.FLAGS.mark_as_parsed()
    options = grain.ReadOptions(num_threads=4, prefetch_buffer_size=4)
    dataset = grain.MapDataset.source(_Parcels(items)).to_iter_dataset(options)
    if workers:
        processes = grain.MultiprocessingOptions(
            num_workers=workers, per_worker_buffer_size=2
        )
        dataset = dataset.mp_prefetch(processes, worker_init_fn=_begin_worker)
    reader = iter(dataset)
    try:
        with _shielded() if workers else contextlib.nullcontext():
            first = list(itertools.islice(reader, 1))  # with it all workers begin
        for parcel in itertools.chain(first, reader):
            yield parcel.content
    finally:
        reader.close()
