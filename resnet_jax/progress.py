"""How far a run of training is: its steps, their running sums, the progress bar."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from tqdm import tqdm

from resnet_jax import metrics


class Progress:
    """The steps that a run has done, and what they gave, fetched in groups.

    Args:
      fail: called with the first loss that is not finite, as text, and its step.
    """

    def __init__(self, fail: Callable[[str, int], NoReturn]) -> None:
        self.step = self.total_steps = 0
        self.steps_per_epoch = 1
        self.sums: metrics.Sums | None = None  # of the steps of the epoch so far
        self.times: dict[str, float] = {}  # of the last epoch, as metrics.jsonl has it
        self._fail = fail
        self._pending: list[metrics.Sums] = []  # on the device

    @property
    def epochs_begun(self) -> int:
        """The number of the epoch of the last step, from 1; 0 before the first."""
        return -(-self.step // self.steps_per_epoch)

    @property
    def at_epoch_end(self) -> bool:
        """Whether the last step was an epoch's last, or the run's."""
        return self.step == self.total_steps or not self.step % self.steps_per_epoch

    def batches(
        self, batches: Iterable[dict[str, Any]], epoch: int
    ) -> Iterator[dict[str, Any]]:
        """`batches` of the epoch, from 0, up to the run's last step.

        Where stderr is a terminal they have a progress bar.
        """
        start = self.step - epoch * self.steps_per_epoch
        left = min(self.steps_per_epoch - start, self.total_steps - self.step)
        begun, self._num_images = time.monotonic(), 0
        with tqdm(
            total=start + left,
            initial=start,
            desc=f"epoch {epoch + 1}/{-(-self.total_steps // self.steps_per_epoch)}",
            unit="step",
            leave=False,
            disable=None,
        ) as self._bar:
            yield from itertools.islice(batches, left)
            self.collect()
        seconds = time.monotonic() - begun
        self.times = {
            "seconds": seconds,
            "images_per_second": self._num_images / seconds,
        }

    def add(self, sums: metrics.Sums) -> None:
        """Counts a step that gave `sums`; it may still be computing them."""
        self.step += 1
        self._pending.append(sums)
        self._bar.update()

    def collect(self) -> None:
        """Fetches all that was added, and adds it up."""
        first = self.step - len(self._pending) + 1
        sums: dict[str, Any] = {}
        for step, sums in enumerate(jax.device_get(self._pending), start=first):
            if not np.isfinite(sums["loss"]):
                self._fail(f"the training loss is {sums['loss']}", step)
            self.sums = metrics.add(self.sums, sums)
            self._num_images += int(sums["count"])
        if sums:
            self._bar.set_postfix(loss=f"{sums['loss'] / sums['count']:.4f}")
        self._pending.clear()
