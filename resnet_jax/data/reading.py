"""Sequences of batches, each of which is read on access."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from resnet_jax.data import stream
from resnet_jax.data.dataset import Dataset

# Maps the number of examples, the sizes of an epoch's batches, and the epoch to the
# indices of each batch: [rows], or [seeds, rows] for several seeds.
Order = Callable[[int, tuple[int, ...], int], list[np.ndarray]]
Rows = dict[str, np.ndarray]  # images and labels


def read(dataset: Dataset, indices: np.ndarray) -> Rows:
    """Reads images and labels for evaluation; their leading axes match `indices`."""
    flat = dataset.take(indices.reshape(-1))
    return _shaped(np.asarray(flat.images), flat.labels, indices)


def read_training(
    dataset: Dataset, indices: np.ndarray, epoch: int, turns: np.ndarray
) -> Rows:
    """Reads images and labels for training in `epoch`; see turns_of for `turns`."""
    flat = dataset.take(indices.reshape(-1))
    images = flat.images
    if isinstance(images, stream.Images):
        images = images.drawn(epoch, turns.reshape(-1))
    return _shaped(images, flat.labels, indices)


def _shaped(images: np.ndarray, labels: np.ndarray, indices: np.ndarray) -> Rows:
    return {
        "images": images.reshape(*indices.shape, *images.shape[1:]),
        "labels": labels.reshape(indices.shape),
    }


def blank(dataset: Dataset, size: int) -> Rows:
    """Returns a batch of zeros with the same shapes as a batch from read_training."""
    images = dataset.images
    if isinstance(images, stream.Images):
        shape: tuple[int, ...] = images.train_shape
    else:
        shape = images.shape[1:]
    return {
        "images": np.zeros((size, *shape), images.dtype),
        "labels": np.zeros(size, dataset.labels.dtype),
    }


def turns_of(batches: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns, for each index, how many times it has already occurred in the epoch."""
    flat = np.concatenate([batch.reshape(-1) for batch in batches])
    order = np.argsort(flat, kind="stable")
    ordered = flat[order]
    is_first = np.r_[True, ordered[1:] != ordered[:-1]]
    places = np.arange(len(flat))
    turns = np.empty(len(flat), np.int64)
    turns[order] = places - np.maximum.accumulate(np.where(is_first, places, 0))
    cuts = np.cumsum([batch.size for batch in batches])[:-1]
    parts = np.split(turns, cuts)
    return [p.reshape(b.shape) for p, b in zip(parts, batches, strict=True)]


@dataclass(frozen=True)
class Reading(Sequence[Rows]):
    """A sequence of batches with the given indices; each batch is read on access."""

    dataset: Dataset
    indices: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: Any) -> Any:
        return read(self.dataset, self.indices[number])


@dataclass(frozen=True)
class Training(Sequence[Rows]):
    """The sequence of all training batches starting at step `first`."""

    dataset: Dataset
    sizes: tuple[int, ...]
    rows: Mapping[int, slice]  # the rows that this process loads, by batch size
    order: Order
    first: int

    def __len__(self) -> int:
        return 2**31  # effectively endless; batches are read on access

    def __getitem__(self, number: Any) -> Any:
        epoch, step = divmod(self.first + number, len(self.sizes))
        order = _remembered(self.order, len(self.dataset), self.sizes, epoch)
        rows = self.rows[self.sizes[step]]
        indices, turns = (part[step][rows] for part in order)
        return read_training(self.dataset, indices, epoch, turns)


@lru_cache(maxsize=2)
def _remembered(
    order: Order, num_examples: int, sizes: tuple[int, ...], epoch: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns the indices of an epoch's batches, and their turns (see turns_of)."""
    batches = order(num_examples, sizes, epoch)
    return batches, turns_of(batches)
