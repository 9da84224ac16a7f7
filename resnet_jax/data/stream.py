"""Streams images with Grain during training."""

import contextlib
import functools
import itertools
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
from resnet_jax.data import shared_memory
from resnet_jax.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL import Image

T = TypeVar("T")
Opened = AbstractContextManager["Image.Image"]
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Reader(Protocol):
    """Reads images by index; readers are pickled and sent to worker processes."""

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """Returns the uint8 images [n, H, W, C] at `indices` [n], for evaluation."""

    def open(self, indices: np.ndarray) -> Iterable[Opened]:
        """Yields context managers that open the stored images at `indices`."""

    def fault(self, index: int, reason: str) -> DataError:
        """Returns the error for an image that cannot be read."""


class Draw(Protocol):
    """Augments images on the host; see transforms.Drawing."""

    @property
    def image_shape(self) -> tuple[int, int, int]: ...

    def __call__(
        self, indices: np.ndarray, epoch: int, turns: np.ndarray
    ) -> np.ndarray:
        """Returns uint8 images [n, H, W, C], augmented for `epoch`."""


@dataclass(frozen=True)
class Images:
    """A lazy substitute for a uint8 array of images that are stored in files.

    Indexing selects images without reading them; np.asarray reads them.
    """

    read: Reader
    indices: np.ndarray  # [N] int64
    image_shape: tuple[int, int, int]
    draw: Draw | None = None  # augmentation on the host, if any
    is_cropped: bool = False  # whether these are center crops of larger images
    kind: str = ""  # distinguishes differently stored copies of the same images

    dtype = np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (N, H, W, C) of the images."""
        return len(self.indices), *self.image_shape

    @property
    def nbytes(self) -> int:
        """Number of bytes that the images would occupy in memory."""
        return int(np.prod(self.shape))

    @property
    def train_shape(self) -> tuple[int, int, int]:
        """Shape (H, W, C) of a training image."""
        return self.image_shape if self.draw is None else self.draw.image_shape

    def drawn(self, epoch: int, turns: np.ndarray) -> np.ndarray:
        """Returns the uint8 images [N, H, W, C], augmented for `epoch` if draw is set.

        See reading.turns_of for `turns`.
        """
        if self.draw is None:
            return self.read(self.indices)
        return self.draw(self.indices, epoch, turns)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, rows: Any) -> "Images":
        return replace(self, indices=self.indices[rows])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.read(self.indices).astype(dtype or np.uint8, copy=False)


def is_large(num_bytes: int) -> bool:
    """Returns whether `num_bytes` is more than half of the machine's memory."""
    return num_bytes > limits.memory() / 2


def _begin_worker(directory: Path | None, index: int, count: int) -> None:
    """Ignores signals in a worker, and makes the worker exit when its parent exits.

    Ctrl-C in a terminal and a scheduler's SIGTERM reach workers too, but the main
    process needs the workers until it has finished the current step.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(directory,), daemon=True).start()


def _end_with_parent(directory: Path | None) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        shared_memory.remove(directory)
        os._exit(1)


@contextlib.contextmanager
def _shielded() -> Iterator[None]:
    """Blocks signals while workers start, because workers inherit the signal mask.

    Workers may take several seconds to reach _begin_worker. Meanwhile, a signal sent to
    this process is handled by another thread or stays pending.
    """
    resource_tracker.ensure_running()  # called first because it unblocks signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def prefetched(items: Sequence[T], workers: int) -> Generator[T]:
    """Yields `items` in order, prefetched by `workers` processes.

    If `workers` is 0, threads prefetch the items instead.

    Raises:
      ConfigError: if grain is not installed.
    """
    try:
        import grain
        from absl import flags
    except ImportError:
        raise ConfigError("stream needs grain: pip install -e '.[stream]'") from None
    if not flags.FLAGS.is_parsed():  # required by Grain's workers
        flags.FLAGS.mark_as_parsed()
    options = grain.ReadOptions(num_threads=4, prefetch_buffer_size=4)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(shared_memory.folder()) if workers else None
        source = grain.MapDataset.source(shared_memory.Batches(items, directory))
        dataset = source.to_iter_dataset(options)
        if workers:
            processes = grain.MultiprocessingOptions(
                num_workers=workers, per_worker_buffer_size=2
            )
            begin = functools.partial(_begin_worker, directory)
            dataset = dataset.mp_prefetch(processes, worker_init_fn=begin)
        reader = iter(dataset)
        stack.callback(reader.close)
        with _shielded() if workers else contextlib.nullcontext():
            first = list(itertools.islice(reader, 1))  # this starts all workers
        for number, batch in enumerate(itertools.chain(first, reader)):
            yield items[number] if batch.content is None else batch.content
