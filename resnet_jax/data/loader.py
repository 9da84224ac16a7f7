"""How the examples of a data set reach the devices: held there, or batch by batch."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from resnet_jax import data
from resnet_jax.data import Dataset, stream
from resnet_jax.devices import mesh as parallel
from resnet_jax.devices import processes
from resnet_jax.errors import ConfigError

Batch = dict[str, jax.Array]  # of rows, or [steps, rows]; fetch completes it
Source = dict[str, jax.Array]  # images [N, H, W, C], labels [N]; empty if not held


def fetch(source: Source, batch: Batch) -> Batch:
    """`batch` with the images and labels that its indices say, where it has indices."""
    if "indices" not in batch:
        return batch
    batch = dict(batch)
    indices = batch.pop("indices")
    for name, held in source.items():
        batch[name] = held.at[indices].get(mode="promise_in_bounds")
    return batch


def _read(dataset: Dataset, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Images and labels in the form of `indices`."""
    flat = dataset.take(indices.reshape(-1))
    images = np.asarray(flat.images)
    return {
        "images": images.reshape(*indices.shape, *images.shape[1:]),
        "labels": flat.labels.reshape(indices.shape),
    }


@dataclass(frozen=True)
class _Reading(Sequence[dict[str, np.ndarray]]):
    """The batches of some indices, each read when it is asked for."""

    dataset: Dataset
    indices: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: Any) -> dict[str, np.ndarray]:
        return _read(self.dataset, self.indices[number])


@dataclass(frozen=True)
class _Training(Sequence[dict[str, np.ndarray]]):
    """The batches of all epochs from step `first` on, so that one reader does them."""

    dataset: Dataset
    sizes: Sequence[int]
    rows: Mapping[int, slice]  # of a batch of a size, those that this process brings
    seed: int
    first: int

    def __len__(self) -> int:
        return 2**31  # without an end; only what is asked for is read

    def __getitem__(self, number: Any) -> dict[str, np.ndarray]:
        epoch, step = divmod(self.first + number, len(self.sizes))
        order = _order(len(self.dataset), tuple(self.sizes), self.seed, epoch)
        return _read(self.dataset, order[step][self.rows[self.sizes[step]]])


@lru_cache(maxsize=2)
def _order(
    num_examples: int, sizes: tuple[int, ...], seed: int, epoch: int
) -> list[np.ndarray]:
    return data.epoch_batches(num_examples, sizes, seed=seed, epoch=epoch)


def make_feed(
    mesh: Mesh,
    *datasets: Dataset,
    steps_per_call: int | None,
    workers: int,
    num_seeds: int = 1,
) -> "Feed":
    """A Feed that holds `datasets` where they fit on a device.

    Args:
      steps_per_call: None is 1 on CPUs, where XLA's loops compute with one thread, and
        20 elsewhere, where it saves the time between steps; 1 if nothing is held.
      num_seeds: that train is asked for.

    Raises:
      ConfigError: several seeds of images that are not in memory.
    """
    in_memory = all(isinstance(d.images, np.ndarray) for d in datasets)
    if num_seeds > 1 and not in_memory:
        raise ConfigError(
            "num_seeds needs pictures that fit in memory: choose fewer by "
            "--max-train-samples, or train one seed at a time"
        )
    fits = in_memory and parallel.fits(sum(d.images.nbytes for d in datasets), mesh)
    held = not processes.any_process(not fits)  # all feed alike
    if steps_per_call is None:
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        steps_per_call = 1 if on_cpu or not held else 20
    return Feed(mesh, held=held, steps_per_call=steps_per_call, workers=workers)


class Feed:
    """Batches for the devices of `mesh`, each process bringing the rows of its own.

    Args:
      held: whether whole data sets lie on each device, as uint8, and a batch is indices
        alone; else its images come with it.
      steps_per_call: consecutive whole batches of an epoch that go as one, for a
        compiled step that scans over them. They begin at multiples of it, so that a
        resumed epoch has the same. Of images that are not in memory, always 1.
      workers: processes that read images that are not in memory.
    """

    def __init__(
        self, mesh: Mesh, *, held: bool, steps_per_call: int = 1, workers: int = 0
    ) -> None:
        self.mesh = mesh
        self._held, self._steps_per_call, self._workers = held, steps_per_call, workers
        # The next step of the run, and the reader that is at it.
        self._ahead: tuple[int, Generator[dict[str, np.ndarray]]] | None = None
        self._sources: dict[int, tuple[Dataset, Source]] = {}

    def close(self) -> None:
        """Ends the processes that read images."""
        if self._ahead is not None:
            self._ahead[1].close()
        self._ahead = None

    def source(self, dataset: Dataset) -> Source:
        """What of `dataset` the devices hold: fetch's first argument."""
        if not self._held:
            return {}
        if id(dataset) not in self._sources:
            arrays = {"images": dataset.images, "labels": dataset.labels}
            whole = parallel.replicate(self.mesh, arrays)
            self._sources[id(dataset)] = dataset, whole
        return self._sources[id(dataset)][1]

    def train(
        self,
        dataset: Dataset,
        sizes: Sequence[int],
        *,
        seed: int,
        epoch: int,
        steps: range,
        num_seeds: int = 1,
    ) -> Iterator[Batch]:
        """The shuffled batches, of these sizes, of the `steps` of an epoch, from 0.

        Args:
          num_seeds: how many seeds, from `seed`; batches of several are [seeds, rows].
        """
        if not isinstance(dataset.images, np.ndarray):
            first = epoch * len(sizes) + steps.start
            yield from self._streamed(dataset, sizes, seed, first, len(steps))
            return
        orders = [
            data.epoch_batches(len(dataset), sizes, seed=each, epoch=epoch)
            for each in range(seed, seed + num_seeds)
        ]
        rows = orders[0]
        if num_seeds > 1:
            rows = [np.stack(batches) for batches in zip(*orders, strict=True)]
        calls = self._calls(sizes, steps)
        indices = [
            np.stack([rows[i] for i in call]) if len(call) > 1 else rows[call[0]]
            for call in calls
        ]
        yield from self._batches(dataset, indices)

    def _streamed(
        self, dataset: Dataset, sizes: Sequence[int], seed: int, first: int, count: int
    ) -> Iterator[Batch]:
        """`count` batches from step `first` of the run on, each read ahead."""
        if self._ahead is None or self._ahead[0] != first:
            rows = {size: self._rows((size,)) for size in set(sizes)}
            training = _Training(dataset, sizes, rows, seed, first)
            self._ahead = first, stream.prefetched(training, self._workers)
        _, reader = self._ahead
        for step in range(first, first + count):
            self._ahead = step + 1, reader
            shape = (sizes[step % len(sizes)],)
            yield self._place_all(next(reader), shape)

    def examples(
        self, dataset: Dataset, sizes: Sequence[int], num_seeds: int = 1
    ) -> Iterator[Batch]:
        """A batch of each form that train gives, to compile for."""
        # A run that goes on, or ends, within a call takes its steps one by one.
        forms = {(1, size) for size in sizes}
        if isinstance(dataset.images, np.ndarray):  # else all come one by one
            calls = self._calls(sizes, range(len(sizes)))
            forms |= {(len(call), sizes[call[0]]) for call in calls}
        for steps, size in sorted(forms):
            axes = [n for n in (steps, num_seeds) if n > 1]
            indices = np.tile(np.arange(size, dtype=np.int32), (*axes, 1))
            yield from self._batches(dataset, [indices])

    def evaluation(self, dataset: Dataset, batch_size: int) -> Iterator[Batch]:
        """Every example once, in order; the last batch is padded, as its mask [B] says.

        The batch size is rounded up to what divides over the devices.
        """
        num_devices = self.mesh.size
        size = max(min(batch_size, len(dataset)), 1)
        size = -(-size // num_devices) * num_devices
        indices, masks = [], []
        for start in range(0, len(dataset), size):
            rows = np.arange(start, start + size)
            masks.append((rows < len(dataset)).astype(np.float32))
            indices.append(np.minimum(rows, len(dataset) - 1))
        batches = self._batches(dataset, indices)
        for batch, mask in zip(batches, masks, strict=True):
            rows = self._rows(mask.shape)
            yield {**batch, "mask": self._place(mask[rows], mask.shape)}

    def _calls(self, sizes: Sequence[int], steps: range) -> Iterator[list[int]]:
        """`steps` in groups: whole aligned ones of equal batches, else one by one."""
        start, together = steps.start, self._steps_per_call
        while start < steps.stop:
            call = list(range(start, min(start + together, steps.stop)))
            alike = {sizes[i] for i in call} == {sizes[start]}
            if start % together or len(call) < together or not alike:
                call = call[:1]
            yield call
            start = call[-1] + 1

    def _batches(self, dataset: Dataset, indices: list[np.ndarray]) -> Iterator[Batch]:
        shapes = [rows.shape for rows in indices]
        local = [i[..., self._rows(i.shape)].astype(np.int32) for i in indices]
        if self._held:
            for rows, shape in zip(local, shapes, strict=True):
                yield {"indices": self._place(rows, shape)}
            return
        reading = _Reading(dataset, local)
        if isinstance(dataset.images, np.ndarray):
            batches: Iterator[dict[str, np.ndarray]] = iter(reading)
        else:
            batches = stream.prefetched(reading, 0)
        for batch, shape in zip(batches, shapes, strict=True):
            yield self._place_all(batch, shape)

    def _place_all(self, batch: dict[str, np.ndarray], shape: tuple[int, ...]) -> Batch:
        return {
            name: self._place(rows, (*shape, *rows.shape[len(shape) :]), len(shape))
            for name, rows in batch.items()
        }

    def _rows(self, shape: tuple[int, ...]) -> slice:
        """Of a batch of this shape, the rows that this process brings."""
        return parallel.local_rows(parallel.spread(self.mesh, shape[-1]), shape[-1])

    def _place(
        self, rows: np.ndarray, shape: tuple[int, ...], num_axes: int | None = None
    ) -> jax.Array:
        """An array of `shape`, spread along the last of its first num_axes axes."""
        axis = (num_axes or len(shape)) - 1
        sharding = parallel.spread(self.mesh, shape[axis], axis=axis)
        return jax.make_array_from_process_local_data(sharding, rows, shape)
