"""Places examples on the devices, either all at once or batch by batch."""

from collections.abc import Generator, Iterator
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from resnet_jax.config import DataConfig
from resnet_jax.data import reading, stream
from resnet_jax.data.dataset import Dataset, Splits, batch_sizes
from resnet_jax.devices import mesh as devices
from resnet_jax.devices import processes
from resnet_jax.errors import ConfigError

Batch = dict[str, jax.Array]  # [rows, ...] or [steps, rows, ...]; see fetch
Source = dict[str, jax.Array]  # images [N, H, W, C], labels [N]; empty if not held


def fetch(source: Source, batch: Batch) -> Batch:
    """Returns `batch` with its indices, if any, replaced by images and labels."""
    if "indices" not in batch:
        return batch
    batch = dict(batch)
    indices = batch.pop("indices")
    for name, held in source.items():
        batch[name] = held.at[indices].get(mode="promise_in_bounds")
    return batch


class Loader:
    """Creates batches on the devices of `mesh`; each process loads only its own rows.

    Args:
      order: the order of the training examples, or None for evaluation only.
      epochs: number of training epochs.
      max_steps: maximum number of training steps, or None to train for all epochs.
      cfg: data options. Each call to the compiled step scans over a group of full
        batches; steps_per_call is the size of a group, and a resumed epoch uses the
        same groups. By default, steps_per_call is 1 if the images are not held on the
        devices, or on CPUs, where XLA runs loops in a single thread. Otherwise, the
        default is 20, which reduces the overhead between steps.
      held: whether to hold whole splits on each device, as uint8, so that batches
        contain only indices. By default (None), the splits are held if they fit.

    Raises:
      ConfigError: if drop_last leaves no batches, or if there are several seeds and the
        images are not in memory.
    """

    def __init__(
        self,
        mesh: Mesh,
        splits: Splits,
        cfg: DataConfig,
        order: reading.Order | None = None,
        epochs: int = 1,
        max_steps: int | None = None,
        held: bool | None = None,
    ) -> None:
        self.mesh, self.splits = mesh, splits
        self._cfg, self._order = cfg, order
        self._epochs, self._max_steps = epochs, max_steps
        self._in_memory = all(isinstance(p.images, np.ndarray) for p in splits[:3])
        self._given_held = held
        # The next step of the run, and a generator of the batches from that step on.
        self._ahead: tuple[int, Generator[dict[str, np.ndarray]]] | None = None
        self._sources: dict[int, tuple[Dataset, Source]] = {}

    def with_splits(self, splits: Splits) -> "Loader":
        """Returns a loader for `splits` with the same options.

        The splits are held on the devices if they fit.
        """
        length = (self._epochs, self._max_steps)
        return Loader(self.mesh, splits, self._cfg, self._order, *length)

    def close(self) -> None:
        """Stops the worker processes."""
        if self._ahead is not None:
            self._ahead[1].close()
        self._ahead = None

    @cached_property
    def _held(self) -> bool:
        if self._given_held is not None:
            return self._given_held
        num_bytes = sum(part.images.nbytes for part in self.splits[:3])
        fits = self._in_memory and devices.fits(num_bytes, self.mesh)
        processes.agree()  # precedes any_process, which a failed process never calls
        return not processes.any_process(not fits)  # all processes must agree

    @cached_property
    def _steps_per_call(self) -> int:
        if self._cfg.steps_per_call is not None:
            return self._cfg.steps_per_call
        on_cpu = self.mesh.devices.flat[0].platform == "cpu"
        return 1 if on_cpu or not self._held else 20

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the batches in an epoch."""
        num, size = len(self.splits.train), self._cfg.batch_size
        return tuple(batch_sizes(num, size, drop_last=self._cfg.drop_last))

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return len(self.sizes)

    @property
    def total_steps(self) -> int:
        """Total number of training steps."""
        whole = self._epochs * self.steps_per_epoch
        return whole if self._max_steps is None else min(whole, self._max_steps)

    def source(self, dataset: Dataset) -> Source:
        """Returns the arrays of `dataset`, placed on the devices, for use in fetch."""
        if not self._held:
            return {}
        if id(dataset) not in self._sources:
            arrays = {"images": dataset.images, "labels": dataset.labels}
            whole = devices.replicate(self.mesh, arrays)
            self._sources[id(dataset)] = dataset, whole
        return self._sources[id(dataset)][1]

    def train(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yields the shuffled batches of an epoch, starting at step `start`.

        Raises:
          ConfigError: if there are several seeds and the images are not in memory.
        """
        first = epoch * self.steps_per_epoch
        steps = range(start, min(self.steps_per_epoch, self.total_steps - first))
        if not self._in_memory:
            yield from self._streamed(first + steps.start, len(steps))
            return
        rows = self._indices(epoch)
        indices = [
            np.stack([rows[i] for i in call]) if len(call) > 1 else rows[call[0]]
            for call in self._calls(steps)
        ]
        yield from self._batches(self.splits.train, indices)

    def first_batch(self) -> dict[str, np.ndarray]:
        """Returns the images and labels of the run's first batch as host arrays."""
        indices = self._indices(0)
        turns = reading.turns_of(indices)[0]
        return reading.read_training(self.splits.train, indices[0], 0, turns)

    def _indices(self, epoch: int) -> list[np.ndarray]:
        if self._order is None:
            raise RuntimeError("a loader without an order has no training batches")
        return self._order(len(self.splits.train), self.sizes, epoch)

    def _streamed(self, first: int, count: int) -> Iterator[Batch]:
        """Yields `count` prefetched batches, starting at step `first` of the run."""
        if self._ahead is None or self._ahead[0] != first:
            if self._indices(0)[0].ndim > 1:
                raise ConfigError(
                    "num_seeds needs images that fit in memory: use fewer images "
                    "with --max-train-samples, or train one seed at a time"
                )
            rows = {size: self._rows((size,)) for size in set(self.sizes)}
            order: Any = self._order
            dataset, sizes = self.splits.train, self.sizes
            training = reading.Training(dataset, sizes, rows, order, first)
            self._ahead = first, stream.prefetched(training, self._cfg.workers)
        _, reader = self._ahead
        for step in range(first, first + count):
            self._ahead = step + 1, reader
            shape = (self.sizes[step % len(self.sizes)],)
            yield self._place_all(next(reader), shape)

    def examples(self) -> Iterator[Batch]:
        """Yields one batch of each shape that train yields, for compilation."""
        # If a run resumes or ends within a group, the group's steps run one by one.
        sizes = self.sizes[: self.total_steps]
        forms = {(1, size) for size in sizes}
        if self._in_memory:  # otherwise, each call runs one step
            calls = self._calls(range(len(sizes)))
            forms |= {(len(call), sizes[call[0]]) for call in calls}
        seeds = self._indices(0)[0].shape[:-1]
        for steps, size in sorted(forms):
            if not self._in_memory:
                yield self._place_all(reading.blank(self.splits.train, size), (size,))
                continue
            axes = ((steps,) if steps > 1 else ()) + seeds
            indices = np.tile(np.arange(size, dtype=np.int32), (*axes, 1))
            yield from self._batches(self.splits.train, [indices])

    def evaluation(self, dataset: Dataset) -> Iterator[Batch]:
        """Yields batches that together contain every example once, in order.

        The batch size is rounded up to a multiple of the number of devices, and `mask`
        [B] is 0 for the rows that are padding.
        """
        num_devices = self.mesh.size
        size = max(min(self._cfg.eval_batch_size, len(dataset)), 1)
        size = -(-size // num_devices) * num_devices
        indices, masks = [], []
        for start in range(0, len(dataset), size):
            rows = np.arange(start, start + size)
            masks.append((rows < len(dataset)).astype(np.float32))
            indices.append(np.minimum(rows, len(dataset) - 1))
        batches = self._batches(dataset, indices)
        for batch, mask in zip(batches, masks, strict=True):
            mine = self._rows(mask.shape)
            yield {**batch, "mask": self._place(mask[mine], mask.shape)}

    def _calls(self, steps: range) -> Iterator[list[int]]:
        """Yields, for each call to the compiled step, the indices of the steps it runs.

        Each call runs either a full, aligned group of steps that have the same batch
        size, or a single step.
        """
        start, together = steps.start, self._steps_per_call
        while start < steps.stop:
            call = list(range(start, min(start + together, steps.stop)))
            alike = {self.sizes[i] for i in call} == {self.sizes[start]}
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
        batches_of = reading.Reading(dataset, local)
        if isinstance(dataset.images, np.ndarray):
            batches: Iterator[dict[str, np.ndarray]] = iter(batches_of)
        else:
            batches = stream.prefetched(batches_of, 0)
        for batch, shape in zip(batches, shapes, strict=True):
            yield self._place_all(batch, shape)

    def _place_all(self, batch: dict[str, np.ndarray], shape: tuple[int, ...]) -> Batch:
        return {
            name: self._place(rows, (*shape, *rows.shape[len(shape) :]), len(shape))
            for name, rows in batch.items()
        }

    def _rows(self, shape: tuple[int, ...]) -> slice:
        """Returns the slice of rows that this process loads from a batch of `shape`."""
        return devices.local_rows(devices.spread(self.mesh, shape[-1]), shape[-1])

    def _place(
        self, rows: np.ndarray, shape: tuple[int, ...], num_axes: int | None = None
    ) -> jax.Array:
        """Returns a global array of `shape`, to which this process contributes `rows`.

        The array is sharded along axis num_axes - 1, which is the last axis by default.
        """
        axis = (num_axes or len(shape)) - 1
        sharding = devices.spread(self.mesh, shape[axis], axis=axis)
        found: jax.Array = jax.make_array_from_process_local_data(sharding, rows, shape)
        return found
