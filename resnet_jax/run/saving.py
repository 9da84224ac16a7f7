"""When a run is saved, what is saved beside its state, and what a resume must match."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax
from jax.sharding import Mesh

from resnet_jax.config import Config
from resnet_jax.data import UNREAD, Dataset, digest
from resnet_jax.devices import processes
from resnet_jax.errors import CheckpointError, ConfigError
from resnet_jax.run.logs import Logs, Record, last_line
from resnet_jax.run.progress import Progress
from resnet_jax.run.store import Store, is_finite


class Saver:
    """Saves the run of `cfg` in `run_dir`, in the background, and restores it.

    Args:
      fail: called with the reason and the step where a state is not finite.
      mesh: what it is computed on, see Store.
    """

    def __init__(
        self,
        cfg: Config,
        run_dir: Path,
        progress: Progress,
        fail: Callable[[str, int], NoReturn],
        mesh: Mesh,
    ) -> None:
        self._cfg, self._dir, self._progress, self._fail = cfg, run_dir, progress, fail
        # Of several processes the first alone has checkpoints.
        self._store: Store | None = None
        if processes.is_first():
            layout = {
                "platform": mesh.devices.flat[0].platform,
                "devices": str(mesh.size),
                "processes": str(jax.process_count()),
            }
            self._store = Store(run_dir, cfg.keep, layout)
        self.begin_clock()

    def note_data(self, train: Dataset, test: Dataset) -> None:
        """Takes down what the run is of; a resume wants the same."""
        self._data = {
            "classes": list(train.class_names),
            "training data": digest(train),
            "test data": digest(test),
        }

    def restore(self, state: Any) -> tuple[Any, list[Record]]:
        """The state of the newest checkpoint, else `state`; and the run's records.

        Raises:
          CheckpointError: no checkpoint fits `state` and can be read.
          ConfigError: the run was begun on other data.
        """
        found = self._store.restore(state) if self._store is not None else None
        records: list[Record] = []
        if found is not None:
            state, manifest = found
            changed = [
                name
                for name, now in self._data.items()
                if not _are_alike(manifest["data"][name], now)
            ]
            if changed:
                raise ConfigError(
                    f"{self._dir} was begun on other {' and '.join(changed)}: "
                    "bring them back, or choose another --workdir for a new run"
                )
            self._progress.go_to(manifest)
            records = manifest["metrics"]
        records += last_line(self._dir, records, self._progress.step)
        return state, records

    def share(self, state: Any, records: list[Record]) -> tuple[Any, list[Record]]:
        """What restore gave the first process; the others go on from there, too."""
        self._progress.go_to(processes.json_from_first(self._progress.place))
        return processes.from_first(state), processes.json_from_first(records)

    def begin_clock(self) -> None:
        """Now is when --save-every-minutes begins to count."""
        self._saved_at = time.monotonic()

    def is_due(self, steps: int, *, asks: bool) -> bool:
        """Whether the options want a checkpoint after the last `steps` steps.

        Args:
          asks: whether to look at the clocks: of all processes, which save together.
        """
        every, minutes = self._cfg.save_every_steps, self._cfg.save_every_minutes
        if every is not None and self._progress.passed(every, steps):
            return True
        if minutes is None or not asks:
            return False
        elapsed = time.monotonic() - self._saved_at
        return processes.any_process(elapsed >= 60 * minutes)

    def save(self, state: Any, log: Logs, *, last: bool = False) -> None:
        """Begins a checkpoint, unless it is there; the process's last it waits for.

        All processes call it at the same step, so that all find what is not finite.

        Raises:
          CheckpointError: the last one could not be saved.
        """
        self._progress.collect()
        self.begin_clock()
        step = self._progress.step
        if not is_finite(state):
            self._fail("a parameter is not finite", step)
        if self._store is None:
            return
        is_saved = self._store.latest == step
        for _ in range(2 if last else 1):
            failure = log.flush()  # no checkpoint without the lines before it
            if failure is None and not is_saved:
                failure = self._store.save(
                    step,
                    state,
                    {
                        "config": dataclasses.asdict(self._cfg),
                        "data": self._data,
                        **self._progress.place,
                        "metrics": log.records,
                    },
                )
                if last and failure is None:
                    failure = self._store.wait()
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
        if self._store is not None:
            self._store.wait()

    def close(self) -> None:
        """Waits for the save in progress, and frees what it needs."""
        if self._store is not None:
            self._store.close()


def _are_alike(then: Any, now: Any) -> bool:
    """Whether two digests may be of the same data."""
    if isinstance(now, str) and then.startswith(UNREAD) != now.startswith(UNREAD):
        return True  # one is of pixels, the other is not
    return then == now
