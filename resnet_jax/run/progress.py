"""The progress of a run: its steps, their metric sums, and the progress bar."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from tqdm import tqdm

from resnet_jax.config import RunConfig
from resnet_jax.devices import processes
from resnet_jax.training import metrics

log = logging.getLogger(__name__)

LOG_SECONDS = 60.0  # time between log lines that replace the progress bar
_BEFORE = 5  # steps in this process before the trace, to exclude one-time costs
_LEAST = 5  # minimum number of steps to trace; one call may run more


class Progress:
    """The completed steps of a run and their metric sums.

    The sums of several steps are fetched from the device together.

    Args:
      fail: a function that is called with a description and the step of the first
        non-finite loss.
      shape: the shape of the sums of one step.
    """

    def __init__(
        self, fail: Callable[[str, int], NoReturn], shape: tuple[int, ...] = ()
    ) -> None:
        self._shape = shape
        self.step = self.total_steps = 0
        self.steps_per_epoch = 1
        self._scored: int | None = None  # step of the last record
        self.sums: metrics.Sums | None = None  # sums over the epoch's steps so far
        self._seconds = 0.0  # seconds that earlier processes spent on this epoch
        self._begun: float | None = None  # when this process started the epoch
        self.times: dict[str, float] = {}  # timing of the last epoch, for metrics.jsonl
        self._fail = fail
        self._pending: list[metrics.Sums] = []  # sums still on the device
        self._bar: tqdm[Any] = tqdm(disable=True)
        self._saved_at = self._logged_at = time.monotonic()

    @property
    def epochs_begun(self) -> int:
        """Returns the epoch (from 1) of the latest step, or 0 before the first step."""
        return -(-self.step // self.steps_per_epoch)

    @property
    def at_epoch_end(self) -> bool:
        """Returns whether the latest step completed an epoch or the run."""
        return self.step == self.total_steps or not self.step % self.steps_per_epoch

    @property
    def place(self) -> dict[str, Any]:
        """Returns the step, the sums and the seconds as JSON values."""
        sums = {name: value.tolist() for name, value in (self.sums or {}).items()}
        return {"step": self.step, "train_sums": sums, "train_seconds": self.seconds}

    @property
    def seconds(self) -> float:
        """Returns the seconds spent on this epoch, including those before restarts."""
        begun = self._begun
        return self._seconds + (0 if begun is None else time.monotonic() - begun)

    def go_to(self, place: dict[str, Any]) -> None:
        """Continues from `place`, an earlier value of the `place` property."""
        self.step = place["step"]
        sums = {name: np.float64(value) for name, value in place["train_sums"].items()}
        self.sums, self._seconds = sums or None, place["train_seconds"]

    @property
    def is_unscored(self) -> bool:
        """Returns whether an epoch has been trained but not yet recorded."""
        is_new = 0 < self.step <= self.total_steps and self.step != self._scored
        return is_new and self.at_epoch_end

    @property
    def epoch(self) -> int:
        """Returns the epoch to train or score, counted from 0."""
        return (self.step - self.is_unscored) // self.steps_per_epoch

    def note_scored(self, step: int | None) -> None:
        """Stores the step of the last record; resets the sums for the next epoch."""
        self._scored = step
        if not self.is_unscored and not self.step % self.steps_per_epoch:
            self.sums, self._seconds = None, 0.0

    @property
    def steps(self) -> range:
        """Returns the remaining steps of the epoch, up to the last step of the run."""
        first = self.epoch * self.steps_per_epoch
        last = min(self.steps_per_epoch, self.total_steps - first)
        return range(self.step - first, last)

    def passed(self, every: int, steps: int) -> bool:
        """Returns whether a multiple of `every` is among the last `steps` steps."""
        return self.step // every > (self.step - steps) // every

    def begin_clock(self) -> None:
        """Starts the clock for --save-every-minutes."""
        self._saved_at = time.monotonic()

    def is_save_due(self, cfg: RunConfig, steps: int, *, asks: bool) -> bool:
        """Returns whether `cfg` requires a checkpoint after the last `steps` steps.

        Args:
          cfg: the options of the run.
          steps: the number of steps since the last call.
          asks: whether to check the time since the last save; all processes must do so
            together.
        """
        every, minutes = cfg.save_every_steps, cfg.save_every_minutes
        if every is not None and self.passed(every, steps):
            return True
        if minutes is None or not asks:
            return False
        elapsed = time.monotonic() - self._saved_at
        return processes.any_process(elapsed >= 60 * minutes)

    def batches(self, batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yields the epoch's batches, showing a progress bar on a terminal.

        Elsewhere, the first process logs a line every LOG_SECONDS.
        """
        steps, epoch = self.steps, self.epoch
        self._begun = self._logged_at = time.monotonic()
        with tqdm(
            total=steps.stop,
            initial=steps.start,
            desc=f"epoch {epoch + 1}/{-(-self.total_steps // self.steps_per_epoch)}",
            unit="step",
            leave=False,
            disable=None,
        ) as self._bar:
            yield from batches
            self.collect()
        self._seconds, self._begun = self.seconds, None
        num_images = 0 if self.sums is None else float(np.sum(self.sums["count"]))
        self.times = {
            "seconds": self._seconds,
            "images_per_second": num_images / self._seconds,
        }

    def add(self, sums: metrics.Sums) -> int:
        """Adds the sums of one or more steps; returns the number of steps.

        The arrays in `sums` have shape [[steps,] *shape]. Waits for all earlier steps;
        if the host ran far ahead of the device, it could not stop promptly after a
        signal.
        """
        steps: int = sums["loss"].size // math.prod(self._shape)
        self.step += steps
        jax.block_until_ready(self._pending[-1:])
        self._pending.append(sums)
        self._bar.update(steps)
        return steps

    def collect(self) -> None:
        """Fetches the pending sums from the device and adds them up."""
        shape = (-1, *self._shape)
        each: list[metrics.Sums] = []
        for sums in jax.device_get(self._pending):
            steps = {name: value.reshape(shape) for name, value in sums.items()}
            for step in range(len(steps["loss"])):
                each.append({name: value[step] for name, value in steps.items()})
        for step, sums in enumerate(each, start=self.step - len(each) + 1):
            if not np.isfinite(sums["loss"]).all():
                self._fail(f"the training loss is {sums['loss']}", step)
            self.sums = metrics.add(self.sums, sums)
        if each:
            loss = (each[-1]["loss"] / each[-1]["count"]).mean()
            self._bar.set_postfix(loss=f"{loss:.4f}")
            self._log(f"{loss:.4f}")
        self._pending.clear()

    def _log(self, loss: str) -> None:
        """Logs the progress in the epoch if this is due and no bar shows it."""
        now = time.monotonic()
        if not self._bar.disable or self.at_epoch_end or self.sums is None:
            return
        if now - self._logged_at >= LOG_SECONDS and processes.is_first():
            self._logged_at = now
            rate = float(np.sum(self.sums["count"])) / self.seconds
            place = f"step {self.steps.start:,} of {self.steps.stop:,}"
            text = "epoch %3d  %s  loss %s  %.0f images/s"
            log.info(text, self.epochs_begun, place, loss, rate)


class Trace:
    """A JAX profiler trace of a process's sixth to tenth steps, saved in `directory`.

    The trace starts and ends between calls of the compiled step. Each call may run
    several steps: with 20 steps per call, the trace covers the second call.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._due = _BEFORE  # step after which the trace starts or, later, ends
        self._begun: int | None = None  # the step after which the trace started
        self._running = False

    def begin_after(self, step: int) -> None:
        """Sets the step after which this process starts training."""
        self._due = step + _BEFORE

    def step(self, step: int, state: Any) -> None:
        """Starts or ends the trace if due after `step`; first waits for `state`."""
        is_over = self._begun is not None and not self._running
        if is_over or step < self._due:
            return
        jax.block_until_ready(state)
        if self._begun is None:
            jax.profiler.start_trace(str(self._directory))
            self._running = True
            self._begun, self._due = step, step + _LEAST
        else:
            self.close()
            tqdm.write(
                f"trace of steps {self._begun + 1} to {step} saved in {self._directory}"
            )

    def close(self) -> None:
        """Ends the trace if it is still running."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
