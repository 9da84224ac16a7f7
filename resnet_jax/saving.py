"""When a run is saved, what is saved beside its state, and what a resume must match."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from resnet_jax.config import Config
from resnet_jax.data import Dataset, digest
from resnet_jax.errors import CheckpointError, ConfigError
from resnet_jax.logs import Logs, Record
from resnet_jax.progress import Progress
from resnet_jax.store import Store, is_finite


class Saver:
    """Saves the run of `cfg` in `run_dir`, in the background, and restores it.

    Args:
      fail: called with the reason and the step where a state is not finite.
    """

    def __init__(
        self,
        cfg: Config,
        run_dir: Path,
        progress: Progress,
        fail: Callable[[str, int], NoReturn],
    ) -> None:
        self._cfg, self._dir, self._progress, self._fail = cfg, run_dir, progress, fail
        self._store = Store(run_dir, cfg.keep)
        self.begin_clock()

    def note_data(self, train: Dataset, test: Dataset) -> None:
        """Takes down what the run is of; a resume wants the same."""
        self._data = {
            "classes": list(train.class_names),
            "training data": digest(train),
            "test data": digest(test),
        }

    def restore(self, state: Any) -> tuple[Any, list[Record]]:
        """The state of the newest checkpoint and its records; `state` if there is none.

        Raises:
          CheckpointError: no checkpoint fits `state` and can be read.
          ConfigError: the run was begun on other data.
        """
        found = self._store.restore(state)
        if found is None:
            return state, []
        state, manifest = found
        changed = [k for k, v in self._data.items() if manifest["data"][k] != v]
        if changed:
            raise ConfigError(
                f"{self._dir} was begun on other {' and '.join(changed)}: "
                "bring them back, or choose another --workdir for a new run"
            )
        sums = manifest["train_sums"]
        self._progress.sums = sums and {k: np.float64(sums[k]) for k in sums}
        self._progress.step = manifest["step"]
        return state, manifest["metrics"]

    def begin_clock(self) -> None:
        """Now is when --save-every-minutes begins to count."""
        self._saved_at = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether the options want a checkpoint in the middle of an epoch."""
        steps, minutes = self._cfg.save_every_steps, self._cfg.save_every_minutes
        if steps is not None and step % steps == 0:
            return True
        elapsed = time.monotonic() - self._saved_at
        return minutes is not None and elapsed >= 60 * minutes

    def save(self, state: Any, log: Logs, *, last: bool = False) -> None:
        """Begins a checkpoint, unless it is there; the process's last it waits for.

        Raises:
          CheckpointError: the last one could not be saved.
        """
        self._progress.collect()
        self.begin_clock()
        step, sums = self._progress.step, self._progress.sums or {}
        is_saved = self._store.latest == step
        if not is_saved and not is_finite(state):
            self._fail("a parameter is not finite", step)
        for _ in range(2 if last else 1):
            failure = log.flush()  # no checkpoint without the lines before it
            if failure is None and not is_saved:
                self._store.save(
                    step,
                    state,
                    {
                        "config": dataclasses.asdict(self._cfg),
                        "data": self._data,
                        "train_sums": {k: float(v) for k, v in sums.items()},
                        "metrics": log.records,
                    },
                )
                failure = self._store.wait() if last else None
            if failure is None:
                return
        if last:
            raise CheckpointError(
                f"{self._dir}: the checkpoint of step {step} could not be saved "
                f"({failure}): make room, and the same command goes on after step "
                f"{self._store.latest or 0}"
            )

    def wait(self) -> None:
        """Waits for the save in progress."""
        self._store.wait()

    def close(self) -> None:
        """Waits for the save in progress, and frees what it needs."""
        self._store.close()
